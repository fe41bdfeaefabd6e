//! The configuration file that `init` writes: what this node was told is set, every other key stands there commented out
//! with its default and its explanation, so that a later release's better default is taken up.

use horos_wire::{ClusterName, NodeName, Role};
use serde_json::Value;
use std::{fmt::Write as _, path::Path};

use super::{Config, Endpoint, Seed};

/// Every section, in the file's order.
pub(crate) const KEYS: &[&str] = &[
    "cluster",
    "node",
    "listen",
    "peers",
    "liveness",
    "limits",
    "store",
    "runtime",
    "log",
    "identity",
    "drain",
    "http",
    "http-limits",
    "http-timeouts",
    "control",
    "egress",
    "mcp",
];

/// What `init` was told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The cluster's name.
    pub cluster: ClusterName,
    /// The node's name.
    pub name: NodeName,
    /// Its role.
    pub role: Role,
    /// `listen.cluster`; without it the role's default.
    pub listen: Option<std::net::SocketAddr>,
    /// Nodes known from the start.
    pub seeds: Vec<Seed>,
    /// `control.owner`; without it the default.
    pub control_owner: Option<NodeName>,
}

/// Writes the file for a node of these settings.
pub fn template(settings: &Settings) -> String {
    let mut config = Config::defaults(settings.role, Path::new(""));
    config.cluster.name = settings.cluster.clone();
    config.node.name = settings.name.clone();
    config.listen.cluster = settings.listen.unwrap_or(config.listen.cluster);
    let mut set = vec!["cluster.name", "node.name", "node.role", "listen.cluster"];
    if let Some(owner) = &settings.control_owner {
        config.control.owner = owner.clone();
        set.push("control.owner");
    }
    let mut out = String::from(
        "# A Horos node. A later source wins: defaults, this file, the environment (HOROS__LIVENESS__HEARTBEAT=250ms),\n\
         # options. Lines that begin with `#key` show the defaults. `doctor` checks this file.\n",
    );
    let sections = config.sections();
    for key in KEYS {
        let Some((_, about, fields)) = sections.iter().find(|(name, ..)| name == key) else {
            write_seeds(&mut out, &settings.seeds);
            continue;
        };
        out.push('\n');
        comment(&mut out, "", about);
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{key}:");
        for field in fields {
            comment(&mut out, "  ", field.about);
            let mark = if set.contains(&format!("{key}.{}", field.key).as_str()) { "" } else { "#" };
            let _ = writeln!(out, "  {mark}{}: {}", field.key, scalar(&field.value));
        }
    }
    out
}

fn comment(out: &mut String, indent: &str, lines: &[&str]) {
    for line in lines {
        let _ = writeln!(out, "{indent}# {}", line.trim());
    }
}

/// A value as YAML. JSON's strings are YAML's double-quoted ones (YAML 1.2.2 §1.3), so nothing needs escaping twice.
fn scalar(value: &Value) -> String {
    value.to_string()
}

fn write_seeds(out: &mut String, seeds: &[Seed]) {
    out.push_str("\n# Nodes known from the start; the rest is learnt from them. FOs dial BOs.\npeers:\n");
    out.push_str("  # Each with its listen.cluster address, and its name and role where they are to be those and no others.\n");
    if seeds.is_empty() {
        let example: Endpoint = Endpoint { host: "192.0.2.7".into(), port: super::BO_PORT };
        let _ = writeln!(out, "  # For example: [{{address: \"{example}\", name: \"bo-1\", role: \"bo\"}}]\n  #seeds: []");
        return;
    }
    out.push_str("  seeds:\n");
    for seed in seeds {
        let _ = writeln!(out, "    - address: \"{}\"", seed.address);
        if let Some(name) = &seed.name {
            let _ = writeln!(out, "      name: \"{name}\"");
        }
        if let Some(role) = seed.role {
            let _ = writeln!(out, "      role: \"{role}\"");
        }
    }
}
