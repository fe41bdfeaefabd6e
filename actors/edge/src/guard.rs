//! What every request goes through before it reaches a mounted service: first its way there.

use crate::{AppParts, Body, Config, Mount, MountError, Peer, problem::Problem};
use horos_wire::TraceId;
use http::{Request, Response};
use std::sync::Arc;
mod routes;
use routes::{Routes, Target};

#[derive(Debug)]
pub(crate) struct Guard {
    routes: Routes,
    parts: AppParts,
}

impl Guard {
    pub(crate) fn new(_config: Arc<Config>, mounts: Vec<Mount>, parts: AppParts) -> Result<Self, MountError> {
        Ok(Self { routes: Routes::new(mounts)?, parts })
    }
    pub(crate) async fn answer(self: Arc<Self>, mut request: Request<Body>, peer: Peer) -> Response<Body> {
        match self.routes.find(request.uri().path(), peer.plane) {
            Some(Target::Alive) => crate::health::alive(),
            Some(Target::Ready) => crate::health::readiness(&self.parts.conditions, &self.parts.drain, crate::health::Detail::Lines),
            Some(Target::Mount(mount)) if *mount.access() == crate::Access::Public => {
                if let Ok(uri) = routes::below(request.uri(), mount.prefix()) {
                    *request.uri_mut() = uri;
                }
                (mount.serve)(request).await
            }
            Some(Target::Mount(_) | Target::Metrics(_)) => Problem::UNAUTHENTICATED.answer("", TraceId(0)),
            None => Problem::NOT_FOUND.answer("", TraceId(0)),
        }
    }
}
