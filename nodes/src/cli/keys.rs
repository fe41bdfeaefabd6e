//! `keys …` and `tokens …`: who may come in from outside. Carried out by the owner of control.db, wherever that is.
//!
//! A key's and a token's text goes to stdout, once, and nowhere else: not to stderr, not into a log.

use clap::Subcommand;
use horos_wire::{
    ActorName, Address, CallError, NoEffect, Request, Scope as Place,
    principal::Scope,
    protocol::keys::{
        Create, DistrustIssuer, Grants, IssueToken, Issuers, KeyRecord, Keys as Protocol, KeysError, List, MAX_TEXT, MAX_TOKEN_ID, NAME,
        PAGE, Refused, Revoke, RevokeToken, TrustIssuer, Which,
    },
};
use serde_json::json;

use super::{Output, Remote, RemoteError, run::End};
use crate::{exit::Exit, render};

/// Minutes that the owner remembers of what was refused: a day.
const MAX_MINUTES: u32 = 24 * 60;
/// Keys that `list` shows unless it is told how many.
const SHOWN: usize = 1000;

/// `keys …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Keys {
    /// Make a key; prints it, this once
    #[command(after_help = "\
Examples:
  {bin} keys create --name till --owner ana --scope shop
  {bin} keys create --name reports --owner ana --scope stock:read --scope stock:export --expires 30d --per-minute 60
  KEY=$({bin} keys create --name till --owner ana --scope shop)

The key goes to stdout and is kept nowhere: what is stored is its hash. Who loses it makes another.
It counts on every node at once.")]
    Create {
        /// What it is for, in a few words
        #[arg(long, value_parser = text)]
        name: Box<str>,
        /// Who is given it
        #[arg(long, value_parser = text)]
        owner: Box<str>,
        /// What it may do; may be repeated. There is none by default
        #[arg(long, required = true, value_name = "SCOPE", value_delimiter = ',')]
        scope: Vec<Scope>,
        /// When it ends: a span (90d, 12h), a time with its zone (2027-01-31T12:00:00Z), or never. Without it 90 days
        #[arg(long, value_name = "WHEN")]
        expires: Option<Box<str>>,
        /// Requests a minute that it may make on one node, instead of http-limits.per-identity
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        per_minute: Option<u32>,
    },
    /// The keys there are, the newest first; never their text
    #[command(after_help = "\
Examples:
  {bin} keys list
  {bin} keys list --owner ana --all
  {bin} keys list --json | jq -r '.[] | select(.refused > 0) | .id'")]
    List {
        /// Only this owner's
        #[arg(long, value_parser = text)]
        owner: Option<Box<str>>,
        /// Those too that have expired or were revoked
        #[arg(long)]
        all: bool,
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = SHOWN)]
        limit: usize,
    },
    /// Revoke a key, or all of an owner's, for good and on every node within a second
    #[command(after_help = "\
Examples:
  {bin} keys revoke key_01j9…
  {bin} keys revoke hk_3f2a91
  {bin} keys revoke --owner ana

Done twice it has one effect.")]
    Revoke {
        /// The key's id, or how its text begins
        #[arg(required_unless_present = "owner", value_parser = text)]
        key: Option<Box<str>>,
        /// Every key of this owner, when the owner leaves
        #[arg(long, conflicts_with = "key", value_parser = text)]
        owner: Option<Box<str>>,
    },
    /// What was refused on all nodes lately: guesses, expired and revoked keys, wrong scopes
    #[command(after_help = "Examples:\n  {bin} keys refused\n  {bin} keys refused --minutes 1440 --json")]
    Refused {
        /// How many minutes back
        #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_MINUTES)))]
        minutes: u32,
    },
}

/// `tokens …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Tokens {
    /// Sign a token that proves a user; prints it, this once
    #[command(after_help = "\
Examples:
  {bin} tokens issue --user ana --scope shop
  {bin} tokens issue --user ana --scope shop --expires 15m --audience shop.example.org

Signed with the cluster's own key (EdDSA). For tests and small systems: who has users of their own signs their tokens and
has `{bin} tokens trust` believe them.")]
    Issue {
        /// The user that it proves
        #[arg(long, value_parser = text)]
        user: Box<str>,
        /// What it may do; may be repeated. Without any it says who the user is and opens nothing
        #[arg(long, value_name = "SCOPE", value_delimiter = ',')]
        scope: Vec<Scope>,
        /// For whom; without it this cluster
        #[arg(long, value_parser = text)]
        audience: Option<Box<str>>,
        /// When it ends: a span or a time with its zone, 24 hours ahead at most. Without it an hour
        #[arg(long, value_name = "WHEN")]
        expires: Option<Box<str>>,
    },
    /// Refuse a token, whoever signed it, on every node within a second
    #[command(after_help = "Examples:\n  {bin} tokens revoke 0192f6c0-…\n  {bin} tokens revoke 0192f6c0-… --until 12h")]
    Revoke {
        /// The token's id (jti)
        #[arg(value_parser = id)]
        jti: Box<str>,
        /// Until when at least: a span or a time with its zone. Without it the longest that any token is taken for
        #[arg(long, value_name = "WHEN")]
        until: Option<Box<str>>,
    },
    /// Believe what somebody else signs
    #[command(after_help = "\
Examples:
  {bin} tokens trust --kid login-2026 --issuer https://login.example.org --audience shop \\
      --public-key 11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo --scope shop

The key is Ed25519: its 32 bytes in base64url, the `x` of its JWK. Its tokens may never do more than the scopes named here.
They must say iss, aud, sub, exp and jti, and last a day at most, from nbf, or without it from iat.
Told again with the same --kid and key, the rest is replaced.")]
    Trust {
        /// The signing key's id, which must stand in a token's header as kid
        #[arg(long, value_parser = id)]
        kid: Box<str>,
        /// What must stand in a token as iss
        #[arg(long, value_parser = text)]
        issuer: Box<str>,
        /// What must stand in a token as aud, or among it
        #[arg(long, value_parser = text)]
        audience: Box<str>,
        /// The public key
        #[arg(long, value_name = "X")]
        public_key: Box<str>,
        /// The most that its tokens may do; may be repeated
        #[arg(long, value_name = "SCOPE", value_delimiter = ',', required_unless_present = "any_scope", conflicts_with = "any_scope")]
        scope: Vec<Scope>,
        /// Its tokens may do whatever they say
        #[arg(long)]
        any_scope: bool,
    },
    /// Believe a signing key no more: its tokens are refused on every node within a second
    #[command(after_help = "Examples:\n  {bin} tokens distrust login-2026")]
    Distrust {
        /// The signing key's id
        #[arg(value_parser = id)]
        kid: Box<str>,
    },
    /// Whose tokens are believed
    #[command(after_help = "Examples:\n  {bin} tokens issuers\n  {bin} tokens issuers --json")]
    Issuers,
}

fn text(text: &str) -> Result<Box<str>, String> {
    bounded(text, MAX_TEXT)
}

fn id(text: &str) -> Result<Box<str>, String> {
    bounded(text, MAX_TOKEN_ID)
}

fn bounded(text: &str, most: usize) -> Result<Box<str>, String> {
    let text = text.trim();
    if text.is_empty() || text.len() > most { Err(format!("1 to {most} bytes")) } else { Ok(text.into()) }
}

/// Who answers: the owner, as the asked node's configuration names it. A node of a release before does not say: then whoever
/// offers it, which the policy lets a BO alone.
pub(super) async fn owner<R: Remote>(node: &mut R, name: &str) -> Result<Address, RemoteError> {
    let name: ActorName = name.parse().expect("a literal name that keeps the rules");
    Ok(Address { name, scope: node.control_owner().await?.map_or(Place::Any, Place::Node) })
}

/// Asks the owner; an error says who that is where it cannot be asked.
async fn ask<R, Q>(node: &mut R, at: &Address, request: Q) -> Result<Q::Reply, RemoteError>
where
    R: Remote,
    Q: Request<Protocol = Protocol, Error = KeysError>,
{
    node.keys(at, request).await.map_err(|error| or_away(error, at, "the keys"))
}

/// The error, or that it is the owner of `what`, at `at`, who cannot be asked.
pub(super) fn or_away(error: RemoteError, at: &Address, what: &'static str) -> RemoteError {
    match (error, &at.scope) {
        (RemoteError::Call(CallError::NoEffect(reason)), Place::Node(owner)) if away(&reason) => {
            RemoteError::OwnerAway { owner: owner.clone(), what, reason }
        }
        (error, _) => error,
    }
}

/// Whether it is the node that is missing, or the service on it, and not this request that is refused.
fn away(reason: &NoEffect) -> bool {
    use NoEffect as N;
    matches!(reason, N::NoRoute(_) | N::NoSuchActor(_) | N::VersionNotSpoken(_) | N::Stopping)
}

pub(crate) async fn keys<R: Remote>(command: Keys, node: &mut R, output: &Output) -> Result<(), End> {
    let at = &owner(node, NAME).await?;
    match command {
        Keys::Create { name, owner, scope, expires, per_minute } => {
            let made = ask(node, at, Create { name, owner, scopes: scope, expires, per_minute }).await?;
            let Some(secret) = made.secret else {
                return Err(output.fail_text(Exit::Failed, "the key was made before, and its text is shown once", None).into());
            };
            output.say(&render::key_made(&made.key));
            let value = json!({ "key": made.key, "secret": secret.reveal() });
            output.data(&value, |_| format!("{}\n", secret.reveal()))?;
        }
        Keys::List { owner, all, limit } => {
            let (mut keys, mut after) = (Vec::<KeyRecord>::new(), None);
            // A page holds `PAGE` at most, so that this ends.
            let cut = loop {
                let page = ask(node, at, List { owner: owner.clone(), all, after }).await?;
                keys.extend(page.keys.into_iter().take(PAGE));
                after = page.next;
                if keys.len() > limit || after.is_none() {
                    break keys.len() > limit;
                }
                if keys.len() == limit {
                    break true;
                }
            };
            keys.truncate(limit);
            output.data(&keys, |style| render::keys(&keys, style))?;
            if cut {
                output.say(&format!("the newest {limit}; --limit shows more, --owner those of one"));
            }
        }
        Keys::Revoke { key, owner } => {
            let which = match (key, owner) {
                (Some(key), _) => Which::Key(key),
                (None, Some(owner)) => Which::Owner(owner),
                (None, None) => unreachable!("clap wants one of both"),
            };
            let done = ask(node, at, Revoke { which }).await?;
            output.data(&done, |style| render::keys(&done.keys, style))?;
            output.say(&match done.count {
                0 => "nothing was left to revoke".to_owned(),
                1 => "one key is revoked, on every node within a second".to_owned(),
                count => format!("{count} keys are revoked, on every node within a second"),
            });
        }
        Keys::Refused { minutes } => {
            let told = ask(node, at, Refused { minutes }).await?;
            output.data(&told, |style| render::refused(&told, style))?;
        }
    }
    Ok(())
}

pub(crate) async fn tokens<R: Remote>(command: Tokens, node: &mut R, output: &Output) -> Result<(), End> {
    let at = &owner(node, NAME).await?;
    match command {
        Tokens::Issue { user, scope, audience, expires } => {
            let issued = ask(node, at, IssueToken { user, scopes: scope, audience, expires }).await?;
            output.say(&format!("token {} for {}, until {}", issued.jti, issued.audience, issued.expires_at));
            let value = json!({
                "token": issued.token.reveal(), "jti": issued.jti, "kid": issued.kid, "audience": issued.audience,
                "expires_at": issued.expires_at,
            });
            output.data(&value, |_| format!("{}\n", issued.token.reveal()))?;
        }
        Tokens::Revoke { jti, until } => {
            ask(node, at, RevokeToken { jti: jti.clone(), until }).await?;
            output.data(&json!({ "revoked": jti }), |_| String::new())?;
            output.say("it is refused on every node within a second");
        }
        Tokens::Trust { kid, issuer, audience, public_key, scope, any_scope } => {
            let grants = if any_scope { Grants::Any } else { Grants::Only(scope) };
            let trusted = [ask(node, at, TrustIssuer { kid, issuer, audience, public_key, grants }).await?];
            output.data(&trusted[0], |style| render::issuers(&trusted, style))?;
        }
        Tokens::Distrust { kid } => {
            ask(node, at, DistrustIssuer { kid: kid.clone() }).await?;
            output.data(&json!({ "distrusted": kid }), |_| String::new())?;
            output.say("what it signed is refused on every node within a second");
        }
        Tokens::Issuers => {
            let issuers = ask(node, at, Issuers {}).await?;
            output.data(&issuers, |style| render::issuers(&issuers, style))?;
        }
    }
    Ok(())
}
