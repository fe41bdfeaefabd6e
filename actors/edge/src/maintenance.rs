//! Maintenance: every mounted service answers 503, but for administration and the probes.
//!
//! A shared switch with no source of its own: `nodes` turns it on and off, from a file or a table. It fails closed: when
//! the source cannot be read, [`Maintenance::unreadable`] leaves it as it was and says so at `/readyz?verbose`.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use horos_wire::principal::Scope;
use http::HeaderValue;

use crate::Conditions;

/// Longest message in bytes; the rest is cut off.
pub const MAX_MESSAGE: usize = 4 * 1024;
/// The condition that tells of a source that cannot be read.
const CONDITION: &str = "maintenance";

/// What people are told while it is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Plain text. It is escaped where it goes into a page.
    pub message: Box<str>,
    /// When they may try again; whole seconds, at least one.
    pub retry_after: Duration,
    /// Whoever's key or token grants this is let through, to see whether the work is done.
    pub bypass: Option<Scope>,
}

/// A notice with all that can be made of it before anybody asks.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) notice: Notice,
    pub(crate) retry_after: HeaderValue,
    pub(crate) page: Bytes,
}

/// The switch. Cheap to clone: every clone is the same switch. A look costs no lock.
#[derive(Clone, Debug)]
pub struct Maintenance {
    state: Arc<ArcSwapOption<Prepared>>,
    conditions: Conditions,
}

impl Maintenance {
    /// Off; what goes wrong with its source shows in `conditions`.
    pub fn new(conditions: Conditions) -> Self {
        Self { state: Arc::default(), conditions }
    }

    /// On, with `notice`. Where a source has not been read yet, this is what it is before [`Maintenance::off`].
    pub fn on(&self, notice: Notice) {
        self.state.store(Some(Arc::new(Prepared::new(notice))));
        self.conditions.clear(CONDITION);
    }

    /// Off.
    pub fn off(&self) {
        self.state.store(None);
        self.conditions.clear(CONDITION);
    }

    /// Whether it is on cannot be told, for `reason`, which is public: it stays as it was.
    pub fn unreadable(&self, reason: &str) {
        self.conditions.note(CONDITION, reason);
    }

    /// What people are told, while it is on.
    pub fn notice(&self) -> Option<Notice> {
        self.state.load().as_ref().map(|prepared| prepared.notice.clone())
    }

    pub(crate) fn prepared(&self) -> Option<Arc<Prepared>> {
        // The look without a reference count comes first: off is the usual case.
        if self.state.load().is_none() { None } else { self.state.load_full() }
    }
}

impl Prepared {
    fn new(mut notice: Notice) -> Self {
        if notice.message.len() > MAX_MESSAGE {
            notice.message = notice.message[..notice.message.floor_char_boundary(MAX_MESSAGE)].into();
        }
        let seconds = notice.retry_after.as_secs().max(1);
        let mut page = String::from(
            "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>Maintenance</title>\
             <meta name=\"viewport\" content=\"width=device-width\"></head>\n<body>\n<h1>Maintenance</h1>\n<p>",
        );
        escape(&notice.message, &mut page);
        page.push_str("</p>\n</body>\n</html>\n");
        Self { retry_after: HeaderValue::from(seconds), page: page.into(), notice }
    }
}

/// Nothing in `text` stands for markup any longer: the five characters that HTML gives a meaning to, and control characters.
fn escape(text: &str, into: &mut String) {
    for c in text.chars() {
        match c {
            '&' => into.push_str("&amp;"),
            '<' => into.push_str("&lt;"),
            '>' => into.push_str("&gt;"),
            '"' => into.push_str("&quot;"),
            '\'' => into.push_str("&#39;"),
            '\n' => into.push_str("<br>\n"),
            c if c.is_control() => into.push(' '),
            c => into.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(message: &str) -> Notice {
        Notice { message: message.into(), retry_after: Duration::from_millis(10), bypass: None }
    }

    #[test]
    fn a_message_is_text_on_the_page_whatever_it_holds() {
        let prepared = Prepared::new(notice("<script>alert('1')</script>\n\"a\" & b\u{0}"));
        let page = std::str::from_utf8(&prepared.page).unwrap();
        assert!(page.contains("<p>&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;<br>\n&quot;a&quot; &amp; b </p>"), "{page}");
        assert_eq!(prepared.retry_after, "1", "nobody is told to come back at once");
        let long = Prepared::new(notice(&"ü".repeat(MAX_MESSAGE)));
        assert_eq!(long.notice.message.len(), MAX_MESSAGE);
    }

    #[test]
    fn what_cannot_be_read_stays_as_it_was_and_is_shown() {
        let conditions = Conditions::default();
        let maintenance = Maintenance::new(conditions.clone());
        maintenance.unreadable("the file is no text");
        assert_eq!(maintenance.notice(), None);
        maintenance.on(notice("back at noon"));
        assert_eq!(conditions.list()[0].reason, None);
        maintenance.unreadable("the file is no text");
        assert_eq!(maintenance.clone().notice().unwrap().message.as_ref(), "back at noon");
        let listed = conditions.list();
        assert_eq!((&*listed[0].name, listed[0].reason.as_deref()), ("maintenance", Some("the file is no text")));
        maintenance.off();
        assert!(maintenance.prepared().is_none());
    }
}
