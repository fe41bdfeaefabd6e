//! Bytes of large requests in hand, of all and of each principal.
//!
//! The port bounds how many requests there are at once, and rmcp how large each may be; the product of both is more than a node has. So a
//! request that may be large has its place before anything of it is read, and keeps it until its answer is there.

use std::{collections::HashMap, sync::Arc};

use ::http::{Request, header};
use parking_lot::Mutex;

/// Requests that are known to be no larger are not counted: a thousand of them are less than [`MOST`].
const SMALL: u64 = 64 << 10;
/// Bytes of all of them; as over QUIC.
const MOST: usize = 256 << 20;
/// Bytes of one principal's: a quarter, which is sixteen of the largest.
const MOST_OF_ONE: usize = 64 << 20;

/// What is held.
#[derive(Debug, Default)]
pub(super) struct Loads(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    all: usize,
    of: HashMap<Arc<str>, usize>,
}

/// There is no room for a request now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Loads {
    /// A place for `request`, whose body is at most `most` bytes; none if it needs none.
    pub(super) fn take<B: http_body::Body>(self: &Arc<Self>, of: &str, request: &Request<B>, most: usize) -> Result<Option<Load>, Full> {
        let size = size(request).min(most as u64);
        if size <= SMALL {
            return Ok(None);
        }
        let size = size as usize;
        let mut held = self.0.lock();
        let (all, own) = (held.all + size, held.of.get(of).copied().unwrap_or_default() + size);
        if all > MOST || own > MOST_OF_ONE {
            return Err(Full);
        }
        let of: Arc<str> = of.into();
        held.all = all;
        held.of.insert(of.clone(), own);
        Ok(Some(Load { loads: self.clone(), of, size }))
    }
}

/// The size of the body, as far as it is said; what says nothing may have any.
fn size<B: http_body::Body>(request: &Request<B>) -> u64 {
    let said = || request.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
    request.body().size_hint().upper().or_else(said).unwrap_or(u64::MAX)
}

/// A request's place, given back on drop.
#[derive(Debug)]
pub(super) struct Load {
    loads: Arc<Loads>,
    of: Arc<str>,
    size: usize,
}

impl Drop for Load {
    fn drop(&mut self) {
        let mut held = self.loads.0.lock();
        held.all -= self.size;
        if let Some(own) = held.of.get_mut(&self.of) {
            *own -= self.size;
            if *own == 0 {
                held.of.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::Empty;

    use super::*;

    const LARGEST: usize = 4 << 20;

    fn of(length: &str) -> Request<http_body_util::combinators::UnsyncBoxBody<Bytes, std::convert::Infallible>> {
        use futures_util::stream;
        use http_body_util::{BodyExt as _, StreamBody};
        let body = StreamBody::new(stream::pending::<Result<http_body::Frame<Bytes>, std::convert::Infallible>>()).boxed_unsync();
        let mut request = Request::new(body);
        if !length.is_empty() {
            request.headers_mut().insert(header::CONTENT_LENGTH, length.parse().unwrap());
        }
        request
    }

    #[test]
    fn each_has_a_share_all_have_a_bound_and_every_place_is_given_back() {
        let loads = Arc::<Loads>::default();
        let take = |who: &str, length: &str| loads.take(who, &of(length), LARGEST);
        // What says no length, or an absurd one, may be as large as any.
        let sixteen: Vec<_> =
            ["", "99999999999999", "4194304", "x"].iter().cycle().take(16).map(|length| take("ana", length).unwrap()).collect();
        assert!(sixteen.iter().all(Option::is_some));
        assert_eq!(take("ana", "").unwrap_err(), Full);
        assert_eq!(take("ana", "65537").unwrap_err(), Full);
        assert!(take("ana", "65536").unwrap().is_none(), "a small one needs no place");
        assert!(loads.take("ana", &Request::new(Empty::<Bytes>::new()), LARGEST).unwrap().is_none());
        let others: Vec<_> = ["ben", "cem", "dan"].iter().flat_map(|who| (0..16).map(|_| take(who, "").unwrap())).collect();
        assert_eq!(take("eva", "").unwrap_err(), Full, "256 MiB of all");
        drop(sixteen);
        assert!(take("eva", "").unwrap().is_some());
        drop(others);
        let held = loads.0.lock();
        assert!(held.all == 0 && held.of.is_empty(), "{held:?}");
    }
}
