//! `identity …`: requests, signatures, revocation. The authority's directory is opened here and nowhere else.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Instant,
};

use horos_link::identity::{
    Authority, Fingerprint, MAX_PEM, Serial, Validity,
    authority::{AuthorityError, Issued, Revoke},
    request::{self, Request},
};
use horos_wire::NodeId;
use jiff::Timestamp;

use super::{
    Common, Identity, Output, Remote as _, RemoteError, init, output,
    run::{self, App},
};
use crate::{
    config::{Config, Sources},
    exit::Exit,
};

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";

pub(crate) fn identity<A: App>(command: Identity, common: &Common, output: &Output, app: &A) -> Result<(), Exit> {
    let now = Timestamp::now();
    match command {
        Identity::Request { id, dir } => {
            let (id, dir) = match id {
                Some(id) => {
                    let dir = dir.unwrap_or_else(|| if id.role.is_node() { common.data.join("identity") } else { person(common) });
                    (id, dir)
                }
                None => {
                    let config = Config::load(&Sources::of(&common.data)).map_err(|problems| output.fail(Exit::Usage, &problems, None))?;
                    (NodeId { cluster: config.cluster.name, role: config.node.role, name: config.node.name }, config.identity.dir)
                }
            };
            let path = init::ask(&dir, &id).map_err(|error| output.fail(Exit::Local, &error, None))?;
            let pem = read(&path, output)?;
            let asked = Request::parse(&pem).map_err(|error| output.fail(Exit::Local, &error, None))?;
            output.say(&format!("{} asks with key {}", id.to_uri(), asked.key));
            output.say(&format!(
                "next, where the authority is: `{{bin}} identity sign REQUEST --as {}/{}/{}`; compare the key there",
                id.cluster, id.role, id.name
            ));
            let value = serde_json::json!({ "id": id.to_uri(), "key": asked.key.to_string(), "path": path, "request": pem });
            output.data(&value, |_| pem.clone())
        }
        Identity::Sign { request, id, days, authority } => {
            let pem = read(&request, output)?;
            let authority = open(authority, common, output)?;
            let asked = Request::parse(&pem).map_err(|error| output.fail(Exit::Usage, &error, None))?;
            let validity = days.map_or_else(|| Validity::usual(now, &id), |days| Validity::days(now, days));
            let (certificate, issued) = authority.sign(&pem, &id, validity).map_err(|error| refused(output, &error))?;
            output.say(&format!("signed {} until {}, for key {}", issued.id.to_uri(), issued.validity.not_after, asked.key));
            let bundle = format!("{certificate}{}", authority.certificate_pem());
            let value = serde_json::json!({ "issued": shown(&issued, None), "certificate": bundle });
            output.data(&value, |_| bundle.clone())
        }
        Identity::Install { certificate, dir } => {
            let bundle = read(&certificate, output)?;
            let dir = dir.unwrap_or_else(|| common.data.join("identity"));
            let (own, authority) = halves(&bundle).ok_or_else(|| {
                output.fail_text(
                    Exit::Usage,
                    "expected a certificate followed by the authority's",
                    Some("`{bin} identity sign` prints both"),
                )
            })?;
            let installed = request::install(&dir, own, authority, now).map_err(|error| output.fail(Exit::Usage, &error, None))?;
            output.say(&format!("{} installed in {}, until {}", installed.id().to_uri(), dir.display(), installed.validity().not_after));
            Ok(())
        }
        Identity::Revoke { who, send, authority } => {
            let authority = open(authority, common, output)?;
            let list = if send {
                let newest = authority.denied().map_err(|error| refused(output, &error))?;
                newest.ok_or_else(|| output.fail_text(Exit::Usage, "nothing was ever revoked here", None))?.text().to_string()
            } else {
                let what = who.iter().map(|text| revocation(text)).collect::<Option<Vec<_>>>().ok_or_else(|| {
                    let next = "cluster/role/name, or a serial number or fingerprint as `{bin} identity list` shows them";
                    output.fail_text(Exit::Usage, "that is no identity, serial number or fingerprint", Some(next))
                })?;
                authority.revoke(&what, now).map_err(|error| refused(output, &error))?
            };
            output.say("the deny list is signed");
            let not_sent = |error: RemoteError| {
                let next = "the list is signed and kept; send it with `{bin} identity revoke --send` when a node is in reach";
                output.fail(error.exit(), &error, Some(next))
            };
            let via = run::via(common).map_err(|why| not_sent(RemoteError::Identity(why)))?;
            let send = async |node: &mut A::Remote| Ok(node.revoke(&list).await?);
            app.block_on(run::on_node(app, &via, Instant::now() + run::REACH, send)).map_err(|end| end.unwrap_or_else(not_sent))?;
            output.say("sent; the node passes it on to all others");
            output.data(&serde_json::json!({ "list": list }), |_| String::new())
        }
        Identity::List { authority } => {
            let authority = open(authority, common, output)?;
            let issued = authority.issued().map_err(|error| refused(output, &error))?;
            let denied = authority.denied().map_err(|error| refused(output, &error))?;
            let state = |it: &Issued| {
                use horos_link::identity::revocation::Denied;
                let gone = denied.iter().flat_map(|list| list.entries()).any(|entry| match entry.what {
                    Denied::Serial(serial) => serial == it.serial,
                    Denied::Fingerprint(fingerprint) => fingerprint == it.fingerprint,
                });
                match () {
                    () if gone => "revoked",
                    () if now > it.validity.not_after => "expired",
                    () => "in force",
                }
            };
            let rows: Vec<_> = issued.iter().map(|it| shown(it, Some(state(it)))).collect();
            output.data(&rows, |_| {
                let line = |it: &Issued| {
                    format!("{:<9} {:<40} until {}  serial {}\n", state(it), it.id.to_uri(), it.validity.not_after, it.serial)
                };
                issued.iter().map(line).collect()
            })
        }
    }
}

fn shown(issued: &Issued, state: Option<&str>) -> serde_json::Value {
    serde_json::json!({
        "id": issued.id.to_uri(),
        "serial": issued.serial.to_string(),
        "fingerprint": issued.fingerprint.to_string(),
        "not_before": issued.validity.not_before,
        "not_after": issued.validity.not_after,
        "state": state,
    })
}

/// Where the keys of the person at this terminal are.
pub(crate) fn person(common: &Common) -> PathBuf {
    common.identity.clone().unwrap_or_else(|| super::run::node_data(&common.data).join(init::OPERATOR))
}

fn open(directory: Option<PathBuf>, common: &Common, output: &Output) -> Result<Authority, Exit> {
    let usual = [init::authority_beside(&common.data), common.data.join("authority")];
    let found = directory.or_else(|| usual.iter().find(|path| path.is_dir()).cloned()).unwrap_or_else(|| usual[0].clone());
    Authority::load(&found).map_err(|error| {
        let next = matches!(error, AuthorityError::None(_)).then_some("--authority names the directory that `{bin} init` made");
        output.fail(Exit::Usage, &error, next)
    })
}

fn refused(output: &output::Output, error: &AuthorityError) -> Exit {
    let exit = if matches!(error, AuthorityError::File(_) | AuthorityError::Damaged { .. }) { Exit::Local } else { Exit::NoEffect };
    output.fail(exit, error, None)
}

fn revocation(text: &str) -> Option<Revoke> {
    if text.contains('/') {
        return super::identity(text).ok().map(Revoke::Identity);
    }
    let fingerprint = text.parse::<Fingerprint>().ok().map(Revoke::Fingerprint);
    fingerprint.or_else(|| text.parse::<Serial>().ok().map(Revoke::Serial))
}

/// The holder's certificate, and the authority's after it.
fn halves(bundle: &str) -> Option<(&str, &str)> {
    let first = bundle.find(BEGIN)?;
    let second = first + BEGIN.len() + bundle[first + BEGIN.len()..].find(BEGIN)?;
    Some((&bundle[first..second], &bundle[second..]))
}

/// A file, or stdin for `-`, of at most [`MAX_PEM`] bytes.
fn read(path: &Path, output: &Output) -> Result<String, Exit> {
    let mut text = String::new();
    let read = if path.as_os_str() == "-" {
        io::stdin().lock().take(MAX_PEM).read_to_string(&mut text)
    } else {
        fs::metadata(path).and_then(|_| File::open(path)?.take(MAX_PEM).read_to_string(&mut text))
    };
    match read {
        Ok(_) => Ok(text),
        Err(error) => Err(output.fail_text(Exit::Local, &format!("cannot read {}: {error}", path.display()), None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sign_prints_is_what_install_reads() {
        let bundle = format!("words before\n{BEGIN}\na\n-----END CERTIFICATE-----\n{BEGIN}\nb\n");
        let (own, authority) = halves(&bundle).unwrap();
        assert!(own.contains("\na\n") && !own.contains("\nb\n") && authority.contains("\nb\n"));
        assert_eq!(halves(BEGIN), None);
    }

    #[test]
    fn a_person_or_a_certificate_can_be_revoked() {
        assert!(matches!(revocation("shop/fo/fo-1"), Some(Revoke::Identity(id)) if id.name.as_str() == "fo-1"));
        assert!(matches!(revocation(&"a".repeat(32)), Some(Revoke::Serial(_))));
        assert!(matches!(revocation(&"a".repeat(64)), Some(Revoke::Fingerprint(_))));
        assert_eq!(revocation("fo-1"), None);
    }
}
