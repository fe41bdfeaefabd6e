//! Keys, issuers of tokens, and what was refused. No secret is among what is shown here.

use horos_wire::{
    principal::Scope,
    protocol::keys::{Grants, Issuer, KeyRecord, KeyState, RefusedMinute},
};

use super::{
    Style, Tint, clean,
    table::{cell, plain, table, written},
};

fn scopes(scopes: &[Scope]) -> String {
    if scopes.is_empty() { "nothing".into() } else { scopes.iter().map(Scope::as_str).collect::<Vec<_>>().join(" ") }
}

/// Without the fractions of a second: `2026-11-21T12:00:00Z`.
fn when(time: &str) -> String {
    let clean = clean(time);
    match clean.split_once('.') {
        Some((whole, _)) if clean.ends_with('Z') => format!("{whole}Z"),
        _ => clean,
    }
}

/// What is said of a key that was just made.
pub fn key_made(key: &KeyRecord) -> String {
    let until = key.expires_at.as_deref().map_or_else(|| "for ever".to_owned(), |at| format!("until {}", when(at)));
    format!("key {} for {} may {}, {until}; its text below is shown this once", clean(&key.id), clean(&key.owner), scopes(&key.scopes))
}

/// Keys.
pub fn keys(keys: &[KeyRecord], style: Style) -> String {
    if keys.is_empty() {
        return "(no keys)\n".into();
    }
    let mut out = table(&["ID", "BEGINS", "NAME", "OWNER", "SCOPES", "STATE", "EXPIRES", "REFUSED"], style);
    for key in keys {
        let tint = match key.state {
            KeyState::Active => Tint::Good,
            KeyState::Expired => Tint::Warn,
            KeyState::Revoked => Tint::Bad,
        };
        out.add_row([
            plain(clean(&key.id)),
            plain(clean(&key.prefix)),
            plain(clean(&key.name)),
            plain(clean(&key.owner)),
            plain(scopes(&key.scopes)),
            cell(&key.state.to_string(), tint),
            plain(key.expires_at.as_deref().map_or_else(|| "never".to_owned(), when)),
            cell(&key.refused.to_string(), if key.refused == 0 { Tint::Dim } else { Tint::Warn }),
        ]);
    }
    written(&out)
}

/// Whose tokens are believed.
pub fn issuers(issuers: &[Issuer], style: Style) -> String {
    if issuers.is_empty() {
        return "(nobody's tokens are believed)\n".into();
    }
    let mut out = table(&["KEY ID", "ISSUER", "AUDIENCE", "MAY", "SINCE", "BY"], style);
    for issuer in issuers {
        let may = match &issuer.grants {
            Grants::Any => "whatever they say".to_owned(),
            Grants::Only(only) => scopes(only),
        };
        let by = if issuer.own { "the cluster itself".to_owned() } else { clean(&issuer.trusted_by) };
        out.add_row([clean(&issuer.kid), clean(&issuer.issuer), clean(&issuer.audience), may, when(&issuer.trusted_at), by]);
    }
    written(&out)
}

/// What was refused, a line a minute and node.
pub fn refused(minutes: &[RefusedMinute], style: Style) -> String {
    if minutes.is_empty() {
        return "(nothing was refused)\n".into();
    }
    let mut out = table(&["MINUTE", "NODE", "GUESSES", "REVOKED", "EXPIRED", "SCOPE", "OTHER"], style);
    for it in minutes {
        let counts = &it.refusals;
        let other = counts.not_yet_valid.saturating_add(counts.other_audience).saturating_add(counts.unavailable);
        let row = [counts.guesses(), counts.revoked, counts.expired, counts.wrong_scope, other];
        let cells = row.map(|count| cell(&count.to_string(), if count == 0 { Tint::Dim } else { Tint::Warn }));
        out.add_row([plain(when(&it.minute)), plain(it.node.as_str())].into_iter().chain(cells));
    }
    written(&out)
}

#[cfg(test)]
mod tests {
    use horos_wire::protocol::keys::Refusals;

    use super::*;

    fn key(state: KeyState) -> KeyRecord {
        KeyRecord {
            id: "key_1".into(),
            prefix: "hk_3f2a91c0".into(),
            name: "till\u{1b}[2J".into(),
            owner: "ana".into(),
            scopes: vec!["shop".parse().unwrap(), "stock:read".parse().unwrap()],
            per_minute: None,
            state,
            created_at: "2026-11-21T12:00:00.5Z".into(),
            created_by: "operator@admin".into(),
            expires_at: Some("2027-02-19T12:00:00.123Z".into()),
            revoked_at: None,
            revoked_by: None,
            refused: 3,
            last_refused_at: None,
        }
    }

    #[test]
    fn keys_are_a_table_that_gives_the_terminal_no_orders() {
        let forever = KeyRecord { expires_at: None, scopes: vec![], refused: 0, ..key(KeyState::Revoked) };
        assert_eq!(
            keys(&[key(KeyState::Active), forever], Style::PLAIN),
            "ID     BEGINS       NAME       OWNER  SCOPES           STATE    EXPIRES               REFUSED\n\
             key_1  hk_3f2a91c0  till [2J   ana    shop stock:read  active   2027-02-19T12:00:00Z  3\n\
             key_1  hk_3f2a91c0  till [2J   ana    nothing          revoked  never                 0\n"
                .replace("till [2J   ", "till [2J  ")
                .replace("NAME       ", "NAME      ")
        );
        assert!(key_made(&key(KeyState::Active)).contains("may shop stock:read, until 2027-02-19T12:00:00Z"));
    }

    #[test]
    fn what_was_refused_is_summed_by_what_an_owner_asks_first() {
        let refusals = Refusals { malformed: 2, unknown: 3, expired: 1, unavailable: 4, ..Refusals::default() };
        let minute = RefusedMinute { minute: "2026-11-21T12:00:00Z".into(), node: "fo-1".parse().unwrap(), refusals };
        assert_eq!(
            refused(&[minute], Style::PLAIN),
            "MINUTE                NODE  GUESSES  REVOKED  EXPIRED  SCOPE  OTHER\n\
             2026-11-21T12:00:00Z  fo-1  5        0        1        0      4\n"
        );
    }

    #[test]
    fn issuers_show_what_their_tokens_may_do() {
        let issuer = |own, grants| Issuer {
            kid: "k1".into(),
            issuer: "login".into(),
            audience: "shop".into(),
            public_key: "x".into(),
            grants,
            own,
            trusted_at: "2026-11-21T12:00:00Z".into(),
            trusted_by: "operator@admin".into(),
        };
        let shown = issuers(&[issuer(true, Grants::Any), issuer(false, Grants::Only(vec![]))], Style::PLAIN);
        assert!(shown.contains("whatever they say") && shown.contains("the cluster itself") && shown.contains("nothing"), "{shown}");
    }
}
