//! Which service a path belongs to: one table for all HTTP versions.
//!
//! A table of our own and not a general router, because a prefix of plain characters is all that is mounted, because what
//! is wanted of a request stands beside the service that it reaches, so that one cannot be found without the other, and
//! because matching then allocates nothing.

use horos_wire::principal::Scope;
use http::{
    Uri,
    uri::{InvalidUri, Parts, PathAndQuery},
};

use crate::{Access, Mount, MountError, Plane};

/// What a path leads to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    Alive,
    Ready,
    Metrics(&'a Access),
    Mount(&'a Mount),
}

/// Whether whoever looks after the node asks how it is.
pub(crate) fn is_probe(path: &str) -> bool {
    matches!(path, ALIVE | READY)
}

#[derive(Debug)]
pub(crate) struct Routes {
    /// The longest prefix first, so that the first that fits is the nearest.
    mounts: Vec<Mount>,
    metrics: Access,
}

const ALIVE: &str = "/livez";
const READY: &str = "/readyz";
const METRICS: &str = "/metrics";

impl Routes {
    pub(crate) fn new(mut mounts: Vec<Mount>) -> Result<Self, MountError> {
        let taken = |prefix: &str| MountError::Taken(prefix.into());
        mounts.sort_by(|a, b| b.prefix.len().cmp(&a.prefix.len()).then_with(|| a.prefix.cmp(&b.prefix)));
        for pair in mounts.windows(2) {
            if pair[0].prefix == pair[1].prefix {
                return Err(taken(&pair[0].prefix));
            }
        }
        for own in [ALIVE, READY, METRICS] {
            if mounts.iter().any(|mount| within(own, &mount.prefix) && &*mount.prefix != "/") {
                return Err(taken(own));
            }
        }
        let metrics: Scope = "metrics".parse().expect("seven lower-case letters are a scope");
        Ok(Self { mounts, metrics: Access::Scope(metrics) })
    }

    pub(crate) fn find(&self, path: &str, plane: Plane) -> Option<Target<'_>> {
        match path {
            ALIVE => return Some(Target::Alive),
            READY => return Some(Target::Ready),
            // Figures are administration: they stay off an address that is for the public only.
            METRICS if plane != Plane::Public => return Some(Target::Metrics(&self.metrics)),
            METRICS => return None,
            _ => {}
        }
        let served = |mount: &&Mount| mount.plane == Plane::Both || plane == Plane::Both || mount.plane == plane;
        self.mounts.iter().filter(|mount| within(path, &mount.prefix)).find(served).map(Target::Mount)
    }
}

/// Whether `path` is `prefix` or below it.
fn within(path: &str, prefix: &str) -> bool {
    match path.strip_prefix(prefix) {
        Some(rest) => rest.is_empty() || rest.starts_with('/') || prefix == "/",
        None => false,
    }
}

/// `uri` without the prefix that led to its service, which begins at `/` as if it were alone.
pub(crate) fn below(uri: &Uri, prefix: &str) -> Result<Uri, InvalidUri> {
    let whole = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let rest = whole.strip_prefix(prefix).unwrap_or(whole);
    let path = match rest.as_bytes() {
        _ if prefix == "/" => return Ok(uri.clone()),
        [] | b"/" => PathAndQuery::from_static("/"),
        [b'?', ..] => PathAndQuery::try_from(format!("/{rest}"))?,
        _ => PathAndQuery::try_from(rest)?,
    };
    let mut parts = Parts::default();
    parts.scheme = uri.scheme().cloned();
    parts.authority = uri.authority().cloned();
    parts.path_and_query = Some(path);
    // Scheme and authority came together, and go together.
    Ok(Uri::from_parts(parts).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::Body;

    fn mount(prefix: &str, plane: Plane) -> Mount {
        let service = tower::service_fn(|_| async { Ok::<_, Infallible>(http::Response::new(Body::empty())) });
        Mount::new(prefix, Access::Public, plane, service).unwrap()
    }

    fn found<'a>(routes: &'a Routes, path: &str, plane: Plane) -> &'a str {
        match routes.find(path, plane) {
            Some(Target::Mount(mount)) => mount.prefix(),
            Some(Target::Alive) => "alive",
            Some(Target::Ready) => "ready",
            Some(Target::Metrics(_)) => "metrics",
            None => "nothing",
        }
    }

    #[test]
    fn the_nearest_prefix_is_found_and_only_at_a_segments_end() {
        let mounts = ["/shop", "/shop/admin", "/blog"].map(|prefix| mount(prefix, Plane::Both));
        let routes = Routes::new(mounts.to_vec()).unwrap();
        for (path, prefix) in [
            ("/shop", "/shop"),
            ("/shop/", "/shop"),
            ("/shop/1/2", "/shop"),
            ("/shop/admin", "/shop/admin"),
            ("/shop/admin/x", "/shop/admin"),
            ("/shop/administrator", "/shop"),
            ("/shopping", "nothing"),
            ("/Shop", "nothing"),
            ("/%73hop", "nothing"),
            ("/", "nothing"),
            ("", "nothing"),
            ("/livez", "alive"),
            ("/livez/", "nothing"),
            ("/readyz", "ready"),
            ("/metrics", "metrics"),
        ] {
            assert_eq!(found(&routes, path, Plane::Both), prefix, "{path}");
        }
    }

    #[test]
    fn administration_is_not_on_an_address_for_the_public() {
        let routes = Routes::new(vec![mount("/", Plane::Public), mount("/admin", Plane::Cluster)]).unwrap();
        assert_eq!(found(&routes, "/admin/x", Plane::Both), "/admin");
        assert_eq!(found(&routes, "/admin/x", Plane::Cluster), "/admin");
        assert_eq!(found(&routes, "/admin/x", Plane::Public), "/", "the public's own service answers as for any other path");
        assert_eq!(found(&routes, "/x", Plane::Cluster), "nothing");
        assert_eq!(found(&routes, "/metrics", Plane::Public), "nothing");
        assert_eq!(found(&routes, "/metrics", Plane::Cluster), "metrics");
    }

    #[test]
    fn no_path_belongs_to_two() {
        let twice = Routes::new(vec![mount("/shop", Plane::Public), mount("/shop", Plane::Cluster)]);
        assert_eq!(twice.unwrap_err(), MountError::Taken("/shop".into()));
        let own = Routes::new(vec![mount("/livez", Plane::Public)]);
        assert_eq!(own.unwrap_err(), MountError::Taken("/livez".into()));
        assert!(Routes::new(vec![mount("/", Plane::Public), mount("/live", Plane::Public)]).is_ok());
        assert!(matches!(Mount::new("/a/../b", Access::Public, Plane::Both, never()), Err(MountError::Prefix(_))));
    }

    fn never() -> impl tower::Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible, Future: Send + 'static>
    + Clone
    + Send
    + Sync
    + 'static {
        tower::service_fn(|_| async { Ok::<_, Infallible>(http::Response::new(Body::empty())) })
    }

    #[test]
    fn a_service_sees_its_paths_as_if_it_were_alone() {
        for (uri, prefix, seen) in [
            ("/shop", "/shop", "/"),
            ("/shop/", "/shop", "/"),
            ("/shop?a=/shop", "/shop", "/?a=/shop"),
            ("/shop/shop/1?b", "/shop", "/shop/1?b"),
            ("/shop//1", "/shop", "//1"),
            ("https://example.org/shop/1", "/shop", "https://example.org/1"),
            ("/a/b", "/", "/a/b"),
        ] {
            assert_eq!(below(&uri.parse().unwrap(), prefix).unwrap().to_string(), seen, "{uri}");
        }
    }
}
