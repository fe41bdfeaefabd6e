use std::sync::Arc;

use horos_wire::principal::{Principal, Proof};

use super::*;
use crate::Who;

/// Somebody with a key and the scope `use`.
pub(crate) fn caller(id: &str) -> Caller {
    let proof = Proof::Key { owner: id.into() };
    let scopes = ["use".parse().unwrap()].into();
    let who = Who::Principal(Arc::new(Principal { id: id.into(), proof, scopes, per_minute: None }));
    Caller { who, credential: None, transport: Transport::Http, session: None, remote: None }
}
