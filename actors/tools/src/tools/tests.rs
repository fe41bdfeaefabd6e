use std::sync::Arc;

use futures_util::future::BoxFuture;
use horos_wire::principal::{Principal, Proof};

use super::*;
use crate::{Behaviour, Run, Spec, Who};

/// Somebody with a key and the scope `use`.
pub(crate) fn caller(id: &str) -> Caller {
    let proof = Proof::Key { owner: id.into() };
    let scopes = ["use".parse().unwrap()].into();
    let who = Who::Principal(Arc::new(Principal { id: id.into(), proof, scopes, per_minute: None }));
    Caller { who, credential: None, transport: Transport::Http, session: None, remote: None }
}

struct Never;

impl Run for Never {
    fn run<'a>(&'a self, _: Call<'a>) -> BoxFuture<'a, Result<Output, ToolError>> {
        Box::pin(std::future::pending())
    }
}

/// What a destructive tool says of itself.
fn spec(name: &str, version: i64) -> Spec {
    Spec {
        name: name.into(),
        title: None,
        description: "Ends it".into(),
        category: "tests".into(),
        input: JsonObject::from_iter([("type".to_owned(), "object".into())]),
        output: None,
        behaviour: Behaviour { mode: Mode::ReadWrite, destructive: true, idempotent: false },
        group: "default".into(),
        timeout: Duration::from_secs(1),
        version,
    }
}

/// A destructive tool.
pub(crate) fn definition(name: &str, version: i64) -> Definition {
    Definition::new(spec(name, version), Arc::new(Never)).unwrap()
}

#[test]
fn what_is_destructive_is_listed_with_its_confirmation_and_may_not_have_one_of_its_own() {
    assert!(definition("end", 1).tool.input_schema["properties"]["confirm"].is_object());
    let mut own = spec("end", 1);
    own.input.insert("properties".into(), serde_json::json!({ "confirm": { "type": "boolean" } }));
    assert_eq!(&*Definition::new(own.clone(), Arc::new(Never)).unwrap_err()[0].at, "input_schema/properties/confirm");
    own.behaviour.destructive = false;
    assert!(Definition::new(own, Arc::new(Never)).is_ok());
    for name in ["search_tools", "call_tool"] {
        assert_eq!(&*Definition::new(spec(name, 1), Arc::new(Never)).unwrap_err()[0].at, "tool_name");
    }
}

#[test]
fn equal_arguments_have_one_digest() {
    let read = |text: &str| serde_json::from_str::<JsonObject>(text).unwrap();
    assert_eq!(digest(&read(r#"{"a":1,"b":{"c":2,"d":3}}"#)), digest(&read(r#"{ "b": {"d":3, "c":2}, "a": 1 }"#)));
    assert_ne!(digest(&read(r#"{"a":1}"#)), digest(&read(r#"{"a":"1"}"#)));
}

#[test]
fn a_result_is_measured_no_further_than_its_limit() {
    let of = |bytes: usize| Output::json(Value::String("x".repeat(bytes - 2)));
    assert!(!is_larger(&of(100), 100));
    assert!(is_larger(&of(101), 100));
    let content = vec![rmcp::model::ContentBlock::text("x".repeat(100))];
    assert!(is_larger(&Output { structured: None, content }, 100));
}
