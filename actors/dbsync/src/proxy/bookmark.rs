//! `X-Sync-Position`: how far the logs of changes had got when a write was answered, in a header or in a cookie.
//!
//! As a header `NAME=EPOCH.SEQ.STAMP`, one member a publication, parted by commas (RFC 9110 §5.6.1), or the word `unknown`. In a
//! cookie, whose value may hold no comma (RFC 6265 §4.1.1), they are parted by slashes. A bookmark proves nothing and opens nothing:
//! whoever makes one up waits a moment longer, or is answered by the owner.
//!
//! A browser that writes twice at once may get the later answer first; so what goes into a cookie is the highest that this node has
//! seen ([`Highest`]), and each node's cookie has a name of its own: a reader waits for all of them.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use horos_wire::{ActorName, NodeName, address::MAX_NAME, protocol::sync::MAX_POSITION, protocol::sync::Position};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{COOKIE, SET_COOKIE},
};
use parking_lot::Mutex;

/// The header: of the answer to a write, and of a read that is to see it.
pub const X_SYNC_POSITION: HeaderName = HeaderName::from_static("x-sync-position");

/// Most publications in a bookmark.
pub const MAX_MARKS: usize = 16;

/// Longest bookmark in bytes.
pub const MAX_BOOKMARK: usize = MAX_MARKS * (MAX_NAME + 1 + MAX_POSITION + 1);

/// What the cookie's name begins with; behind it comes a dot and the name of the node that sets it.
const COOKIE_NAME: &str = "horos-sync-position";

/// Most of our cookies that one request brings: the FOs that a browser wrote through within a cookie's life.
const MAX_COOKIES: usize = 8;

const UNKNOWN: &str = "unknown";

/// How far the logs of some publications had got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bookmark(Vec<(ActorName, Position)>);

/// A text that is no bookmark, too long a one, or one that says that the position is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected positions as NAME=EPOCH.SEQ.STAMP, parted by commas, of at most {MAX_MARKS} publications")]
pub struct BookmarkError;

impl Bookmark {
    /// Of these publications; none where there are too many to be said, or one of them twice.
    pub fn new(marks: Vec<(ActorName, Position)>) -> Option<Self> {
        let twice = marks.iter().enumerate().any(|(n, (name, _))| marks[..n].iter().any(|(other, _)| other == name));
        (marks.len() <= MAX_MARKS && !twice).then_some(Self(marks))
    }

    /// The publications and how far each had got.
    pub fn marks(&self) -> &[(ActorName, Position)] {
        &self.0
    }

    /// As the header's value. One without a publication is unknown: a node that publishes nothing knows of no position.
    pub fn header(&self) -> HeaderValue {
        if self.0.is_empty() { unknown() } else { value(self.to_string()) }
    }

    fn parse(text: &str, between: char) -> Result<Self, BookmarkError> {
        if text.len() > MAX_BOOKMARK || text.split(between).count() > MAX_MARKS {
            return Err(BookmarkError);
        }
        let mark = |member: &str| {
            let (name, position) = member.split_once('=')?;
            Some((name.parse().ok()?, position.parse().ok()?))
        };
        let marks = text.split(between).map(|member| mark(member.trim_matches([' ', '\t']))).collect::<Option<Vec<_>>>();
        marks.and_then(Self::new).ok_or(BookmarkError)
    }

    /// What a request brings: in the header and in cookies, all of it to be waited for.
    ///
    /// # Errors
    /// Something of it cannot be read, or is unknown. Whoever brings it must be answered by the owner.
    pub(super) fn brought(headers: &HeaderMap) -> Result<Vec<(ActorName, Position)>, BookmarkError> {
        let mut marks = Vec::new();
        let mut lines = headers.get_all(&X_SYNC_POSITION).iter();
        if let Some(line) = lines.next() {
            marks = line.to_str().map_err(|_| BookmarkError)?.parse::<Self>()?.0;
        }
        if lines.next().is_some() {
            return Err(BookmarkError);
        }
        let mut cookies = 0;
        for value in cookies_of(headers) {
            cookies += 1;
            if cookies > MAX_COOKIES {
                return Err(BookmarkError);
            }
            marks.extend(Self::parse(value?, '/')?.0);
        }
        Ok(marks)
    }
}

/// Values of our cookies.
fn cookies_of(headers: &HeaderMap) -> impl Iterator<Item = Result<&str, BookmarkError>> {
    headers.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|b| *b == b';')).filter_map(|pair| {
        let rest = pair.trim_ascii_start().strip_prefix(COOKIE_NAME.as_bytes())?;
        let end = rest.iter().position(|b| *b == b'=')?;
        let ours = end == 0 || rest[0] == b'.';
        ours.then(|| std::str::from_utf8(&rest[end + 1..]).map(str::trim).map_err(|_| BookmarkError))
    })
}

impl fmt::Display for Bookmark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (name, position)) in self.0.iter().enumerate() {
            write!(f, "{}{name}={position}", if n == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl FromStr for Bookmark {
    type Err = BookmarkError;

    fn from_str(text: &str) -> Result<Self, BookmarkError> {
        Self::parse(text, ',')
    }
}

/// Says that how far the logs had got is unknown.
pub(super) fn unknown() -> HeaderValue {
    HeaderValue::from_static(UNKNOWN)
}

/// Names, digits and what parts them are a header's value.
fn value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or_else(|_| unknown())
}

/// The highest position of each publication that any answer through this node has named.
#[derive(Debug, Default)]
pub(super) struct Highest(Mutex<BTreeMap<ActorName, Position>>);

impl Highest {
    /// Takes `bookmark` in, and gives back the highest of all.
    fn raise(&self, bookmark: &Bookmark) -> Bookmark {
        let mut highest = self.0.lock();
        for (name, position) in &bookmark.0 {
            let later = highest.get(name).is_none_or(|known| known.epoch != position.epoch || known.seq < position.seq);
            // Of two epochs nobody can say which is the later: if it is the older one, its readers are sent to the owner.
            if later {
                highest.insert(name.clone(), *position);
            }
        }
        // More publications than can be said: what was just written stays, another may be missed.
        while highest.len() > MAX_MARKS {
            let other = highest.keys().find(|name| bookmark.0.iter().all(|(written, _)| written != *name)).cloned();
            let Some(other) = other else { break };
            highest.remove(&other);
        }
        Bookmark(highest.iter().map(|(name, position)| (name.clone(), *position)).collect())
    }

    /// Puts the cookie of `node` that says `said` into an answer: the position that the owner named, where it named one.
    pub(super) fn set_cookie(&self, headers: &mut HeaderMap, said: Option<&Bookmark>, node: &NodeName, cookie: super::Cookie) {
        let (text, age): (String, Duration) = match said {
            Some(bookmark) => (self.raise(bookmark).to_string().replace(", ", "/"), cookie.max_age),
            None => (UNKNOWN.to_owned(), cookie.unknown_max_age),
        };
        let age = age.as_secs().max(1);
        let text = format!("{COOKIE_NAME}.{node}={text}; Path=/; Max-Age={age}; HttpOnly; Secure; SameSite=Lax");
        if let Ok(value) = text.try_into() {
            headers.append(SET_COOKIE, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use horos_wire::protocol::sync::Epoch;
    use proptest::prelude::*;

    use super::*;

    fn at(epoch: u128, seq: i64) -> Position {
        Position { epoch: Epoch(epoch), seq, stamp: seq ^ 0x55 }
    }

    fn mark(name: &str, epoch: u128, seq: i64) -> (ActorName, Position) {
        (name.parse().unwrap(), at(epoch, seq))
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    const SHOP: &str = "shop=00000000000000000000000000000001.7.0000000000000052";
    const BLOG: &str = "blog=00000000000000000000000000000002.9.000000000000005c";

    #[test]
    fn a_bookmark_is_written_and_read_one_way() {
        let bookmark = Bookmark::new(vec![mark("shop", 1, 7), mark("blog", 2, 9)]).unwrap();
        assert_eq!(bookmark.header(), format!("{SHOP}, {BLOG}"));
        assert_eq!(format!("{SHOP},\t{BLOG}").parse(), Ok(bookmark));
        assert_eq!(Bookmark::default().header(), "unknown");
    }

    #[test]
    fn what_is_no_bookmark_is_refused_whatever_its_size() {
        let many = vec![BLOG; MAX_MARKS + 1].join(",");
        let long = format!("{SHOP}{}", " ".repeat(MAX_BOOKMARK));
        let twice = format!("{SHOP},{SHOP}");
        let trailing = format!("{SHOP},");
        for text in ["", "unknown", "shop", "shop=", "=1.2.3", "shop=1.2.3", "SHOP=x", &many, &long, &twice, &trailing] {
            assert_eq!(text.parse::<Bookmark>(), Err(BookmarkError), "{text}");
        }
        assert!(Bookmark::new((0..=MAX_MARKS).map(|n| mark(&format!("p{n}"), 1, 1)).collect()).is_none());
    }

    #[test]
    fn header_and_cookies_are_all_waited_for() {
        let cookie = format!("a=b; horos-sync-position.fo-1={BLOG}/{SHOP}; horos-sync-positions=x; c=\"d;\"");
        let brought = Bookmark::brought(&headers(&[("x-sync-position", SHOP), ("cookie", &cookie)])).unwrap();
        assert_eq!(brought, [mark("shop", 1, 7), mark("blog", 2, 9), mark("shop", 1, 7)]);
        assert_eq!(Bookmark::brought(&headers(&[("cookie", "a=b; c")])), Ok(vec![]));
        let split = headers(&[("cookie", "a=b"), ("cookie", &format!("horos-sync-position={SHOP}"))]);
        assert_eq!(Bookmark::brought(&split), Ok(vec![mark("shop", 1, 7)]), "HTTP/2 may split the field (RFC 9113 §8.2.3)");
    }

    #[test]
    fn one_that_cannot_be_read_makes_all_of_it_unknown() {
        let nine = vec![format!("horos-sync-position={SHOP}"); MAX_COOKIES + 1].join("; ");
        for lines in [
            &[("x-sync-position", "unknown")][..],
            &[("x-sync-position", SHOP), ("x-sync-position", SHOP)],
            &[("x-sync-position", SHOP), ("cookie", "horos-sync-position.fo-2=unknown")],
            &[("x-sync-position", "\u{fc}")],
            &[("cookie", "horos-sync-position=")],
            &[("cookie", &nine)],
        ] {
            assert_eq!(Bookmark::brought(&headers(lines)), Err(BookmarkError), "{lines:?}");
        }
    }

    #[test]
    fn answers_that_overtake_each_other_leave_the_later_position_in_the_cookie() {
        let highest = Highest::default();
        let cookie = |marks| {
            let mut headers = HeaderMap::new();
            let bookmark = Bookmark::new(marks).unwrap();
            highest.set_cookie(&mut headers, Some(&bookmark), &"fo-1".parse().unwrap(), super::super::Cookie::default());
            headers[SET_COOKIE].to_str().unwrap().to_owned()
        };
        let first = cookie(vec![mark("shop", 1, 7), mark("blog", 2, 9)]);
        assert_eq!(first, format!("horos-sync-position.fo-1={BLOG}/{SHOP}; Path=/; Max-Age=120; HttpOnly; Secure; SameSite=Lax"));
        assert_eq!(cookie(vec![mark("shop", 1, 6)]), first);
        assert!(cookie(vec![mark("shop", 3, 1)]).contains("shop=00000000000000000000000000000003.1."), "a new epoch is no smaller number");
    }

    #[test]
    fn the_cookie_of_a_write_whose_position_is_unknown_sends_its_readers_to_the_owner() {
        let mut headers = HeaderMap::new();
        Highest::default().set_cookie(&mut headers, None, &"fo-1".parse().unwrap(), super::super::Cookie::default());
        let set = headers[SET_COOKIE].to_str().unwrap();
        assert!(set.starts_with("horos-sync-position.fo-1=unknown; Path=/; Max-Age=15;"), "{set}");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_and_what_is_read_is_written_back(text in ".{0,200}") {
            if let Ok(bookmark) = text.parse::<Bookmark>() {
                prop_assert_eq!(bookmark.to_string().parse::<Bookmark>(), Ok(bookmark));
            }
        }
    }
}
