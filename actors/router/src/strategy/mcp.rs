//! `mcp`: somebody's tool.
//!
//! Here is how rows are checked, on any node and before anybody is reached; the way out is in `horos-tools`, whose strategy `nodes`
//! registers in place of the one here.

use std::{fmt, str::FromStr, sync::Arc};

use ::http::{Uri, Version};
use horos_wire::NodeName;

use super::{Strategy, Target, http};
use crate::config::Config;

/// Longest tool's name, in bytes, as servers have them (MCP 2025-11-25, "Tool Names").
const MAX_TOOL: usize = 128;
/// Longest name of a program, in bytes, as a node's.
const MAX_PROGRAM: usize = 63;

/// Where an MCP server is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Endpoint {
    /// `https://host/mcp`, and `http://…` where that is permitted: streamable HTTP.
    Http(Uri),
    /// `h3://host/mcp`: the same over HTTP/3 and no other version. The URL is that of `https`.
    Http3(Uri),
    /// `quic://host:port`, or `host:port` as rows of the Go system have it: a stream of QUIC, by the ALPN `mcp-quic-v1`.
    Quic {
        /// A name, or an address; one of IPv6 without its brackets.
        host: Box<str>,
        /// Its port.
        port: u16,
    },
    /// `node:NAME`: the door of a node of this cluster, by its certificate.
    Node(NodeName),
    /// `stdio:NAME`: a program that the node starts, and that its configuration calls so.
    Program(ProgramName),
}

/// What a node's configuration calls a program. A row can name no other, and no command.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProgramName(Box<str>);

/// Why a text is no [`ProgramName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a program's name is a small letter and up to {} small letters, digits, - and _", MAX_PROGRAM - 1)]
pub struct ProgramNameError;

impl FromStr for ProgramName {
    type Err = ProgramNameError;

    fn from_str(text: &str) -> Result<Self, ProgramNameError> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
        // A digit would be the port of a host called `stdio`.
        let good = text.len() <= MAX_PROGRAM && text.starts_with(|c: char| c.is_ascii_lowercase()) && text.bytes().all(plain);
        if good { Ok(Self(text.into())) } else { Err(ProgramNameError) }
    }
}

impl fmt::Display for ProgramName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is no [`Endpoint`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EndpointError(Box<str>);

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let wrong = || {
            let forms = "https://host/path, h3://host/path, quic://host:port, node:NAME or stdio:NAME";
            EndpointError(format!("it is {forms}, without a user or password in it").into())
        };
        if let Some(name) = text.strip_prefix("node:") {
            return name.parse().map(Self::Node).map_err(|error| EndpointError(format!("{name:?} names no node: {error}").into()));
        }
        if let Some(name) = text.strip_prefix("stdio:").filter(|name| !name.starts_with(|c: char| c.is_ascii_digit())) {
            return name.parse().map(Self::Program).map_err(|error| EndpointError(format!("{name:?} names no program: {error}").into()));
        }
        if ["http://", "https://", "h3://"].iter().any(|scheme| text.starts_with(scheme)) {
            let (url, version) = http::check(text).map_err(|what| EndpointError(what.into()))?;
            return Ok(if version == Version::HTTP_3 { Self::Http3(url) } else { Self::Http(url) });
        }
        let authority = text.strip_prefix("quic://").unwrap_or(text);
        let authority = authority.strip_suffix('/').filter(|_| authority.len() < text.len()).unwrap_or(authority);
        let (host, port) = authority.rsplit_once(':').ok_or_else(wrong)?;
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse().ok().filter(|port| digits && *port != 0).ok_or_else(wrong)?;
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').filter(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok()).ok_or_else(wrong)?,
            None => host,
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if host.is_empty() || !(host.bytes().all(plain) || host.parse::<std::net::Ipv6Addr>().is_ok() && authority.starts_with('[')) {
            return Err(wrong());
        }
        Ok(Self::Quic { host: host.into(), port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(url) => url.fmt(f),
            Self::Http3(url) => {
                let authority = url.authority().map_or("", |authority| authority.as_str());
                write!(f, "h3://{authority}{}", url.path_and_query().map_or("", |path| path.as_str()))
            }
            Self::Quic { host, port } if host.contains(':') => write!(f, "quic://[{host}]:{port}"),
            Self::Quic { host, port } => write!(f, "quic://{host}:{port}"),
            Self::Node(name) => write!(f, "node:{name}"),
            Self::Program(name) => write!(f, "stdio:{name}"),
        }
    }
}

/// What `endpoint` names, if a row with `config` may have it. Whether it may be reached is decided when it is.
///
/// # Errors
/// What is wrong with the row.
pub fn check(endpoint: &str, config: &Config) -> Result<Endpoint, String> {
    let parsed: Endpoint = endpoint.parse().map_err(|error: EndpointError| error.to_string())?;
    if config.tool_name.as_ref().is_some_and(|tool| tool.is_empty() || tool.len() > MAX_TOOL || tool.chars().any(char::is_control)) {
        return Err(format!("config.tool_name: a tool's name is 1 to {MAX_TOOL} bytes of plain text"));
    }
    Ok(parsed)
}

/// Checks rows and reaches nobody: for a node, or a program, without a way out.
pub(super) struct Unreached;

impl Strategy for Unreached {
    fn is_a_placeholder(&self) -> bool {
        true
    }

    fn check(&self, _: &str, endpoint: &str, config: &Config) -> Result<(), String> {
        check(endpoint, config).map(drop)
    }

    fn open(&self, _: &str, _: &str, _: &Arc<Config>) -> Result<Target, String> {
        Err("this node calls nobody's tools".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_url_a_host_with_its_port_a_node_or_a_program_by_its_name() {
        for (text, shown) in [
            ("https://tools.example.org/mcp?x=1", "https://tools.example.org/mcp?x=1"),
            ("http://127.0.0.1:8080/mcp", "http://127.0.0.1:8080/mcp"),
            ("h3://tools.example.org:8443/mcp?x=1", "h3://tools.example.org:8443/mcp?x=1"),
            ("quic://tools.example.org:7400", "quic://tools.example.org:7400"),
            ("quic://tools.example.org:7400/", "quic://tools.example.org:7400"),
            ("tools.example.org:7400", "quic://tools.example.org:7400"),
            ("quic://[fd00::7]:7400", "quic://[fd00::7]:7400"),
            ("node:bo-1", "node:bo-1"),
            ("stdio:files_2", "stdio:files_2"),
            ("stdio:7400", "quic://stdio:7400"),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), shown);
            assert_eq!(endpoint.to_string().parse(), Ok(endpoint), "{text}");
        }
        for text in [
            "",
            "x",
            "node:",
            "node:a b",
            "stdio:",
            "stdio:/bin/sh",
            "stdio:sh -c x",
            "stdio:Files",
            "stdio:files?",
            "stdio://files",
            "https://",
            "https://u:p@example.org/mcp",
            "h3://",
            "h3:///mcp",
            "h3://u:p@example.org/mcp",
            "ftp://example.org/",
            "quic://example.org",
            "quic://example.org:0",
            "quic://example.org:+7",
            "quic://example.org:70000",
            "quic://u@example.org:7400",
            "quic://example.org:7400/path",
            "quic://fd00::7:7400",
            "example.org:7400/",
            ":7400",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
