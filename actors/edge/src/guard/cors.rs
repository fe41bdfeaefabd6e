//! Who may read answers from other origins (Fetch standard §3.2).

use http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::Cors;

/// The rules, unless no other origin may read anything.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) layer: CorsLayer,
    /// Whether answers differ by origin, so that a cache has to tell them apart.
    pub(crate) varies: bool,
}

/// What a script may read besides the body and the few fields that are always readable.
const EXPOSED: [HeaderName; 6] = [
    header::RETRY_AFTER,
    header::ETAG,
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("traceparent"),
    super::RATELIMIT,
    super::RATELIMIT_POLICY,
];

impl Rules {
    pub(crate) fn new(cors: &Cors) -> Option<Self> {
        let any = cors.origins.iter().any(|origin| &**origin == "*");
        let origins: Vec<HeaderValue> = cors.origins.iter().filter_map(|origin| origin.parse().ok()).collect();
        if origins.is_empty() {
            return None;
        }
        let methods = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
        let mut layer = CorsLayer::new()
            .allow_origin(if any { AllowOrigin::any() } else { AllowOrigin::list(origins) })
            .allow_methods(methods)
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(EXPOSED)
            // Everybody together with cookies is everybody as the user: browsers refuse it, and so do we.
            .allow_credentials(cors.credentials && !any);
        if !cors.max_age.is_zero() {
            layer = layer.max_age(cors.max_age);
        }
        Some(Self { layer, varies: !any })
    }
}
