use proptest::prelude::*;
use rmcp::model::GetMeta as _;
use serde_json::{Value, json};

use super::*;

fn request(line: &str) -> (String, ClientRequest) {
    let envelope = Envelope::read(line.as_bytes()).unwrap();
    let Kind::Request { id, method } = &envelope.kind else { panic!("{line} is no request") };
    ((*id).to_owned(), envelope.request(method).unwrap())
}

#[test]
fn an_id_comes_back_as_it_was_written() {
    for id in ["1", "-7", "1.50", "1e3", "18446744073709551616", "\"a\\u0062\\\"\"", "\"\""] {
        let line = format!("{{\"method\":\"ping\",\"id\":{id},\"jsonrpc\":\"2.0\"}}");
        let (read, _) = request(&line);
        assert_eq!(read, id);
        let answer = result_line(&read, &json!({})).unwrap();
        assert_eq!(String::from_utf8(answer).unwrap(), format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{}}}}\n"));
    }
    let long = format!("\"{}\"", "x".repeat(MAX_ID));
    for id in ["true", "{}", "[1]", "null", &long] {
        let line = format!("{{\"method\":\"ping\",\"id\":{id},\"jsonrpc\":\"2.0\"}}");
        let refusal = Envelope::read(line.as_bytes()).unwrap_err();
        assert_eq!((refusal.id, refusal.code), (None, INVALID), "{id}");
    }
}

/// The short way for calls says the same as rmcp's own.
#[test]
fn a_call_is_read_as_rmcp_reads_it() {
    for params in [
        json!({"name": "echo"}),
        json!({"name": "echo", "arguments": null}),
        json!({"name": "echo", "arguments": {"a": [1, 2.5, "x", null]}, "_meta": {"progressToken": 3, "other": {"x": 1}}}),
        json!({"name": "echo", "requestState": "s", "inputResponses": {}, "unknown": true}),
    ] {
        let line = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).to_string();
        let (_, ours) = request(&line);
        let theirs: ClientRequest = serde_json::from_str(&line).unwrap();
        assert_eq!(ours.get_meta(), theirs.get_meta(), "{line}");
        let (ClientRequest::CallToolRequest(ours), ClientRequest::CallToolRequest(theirs)) = (ours, theirs) else { panic!("{line}") };
        assert_eq!(ours.params, theirs.params, "{line}");
    }
}

#[test]
fn the_key_is_taken_out_however_it_is_written() {
    for key in ["horos/key", "horos\\/key", "horos\\u002fkey"] {
        for method in ["initialize", "tools/call", "tools/list", "ping", "no/such"] {
            let line = format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{"name":"n","protocolVersion":"2025-06-18","capabilities":{{}},"clientInfo":{{"name":"c","version":"1"}},"_meta":{{"{key}":"hk_secret"}}}}}}"#
            );
            let (_, mut request) = request(&line);
            assert_eq!(take_key(&mut request).as_deref(), Some("hk_secret"), "{line}");
            assert!(!format!("{request:?}").contains("hk_secret"), "{request:?}");
            assert_eq!(take_key(&mut request), None);
        }
    }
}

#[test]
fn no_refusal_repeats_what_was_said() {
    let lines = [
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":{"hk_secret":1}}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"_meta":{"horos/key":"hk_secret"}}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"_meta":{"horos/key":"hk_secret"}"#,
        r#"{"jsonrpc":"hk_secret","id":1,"method":"ping"}"#,
    ];
    for line in lines {
        let refusal = match Envelope::read(line.as_bytes()) {
            Err(refusal) => refusal,
            Ok(envelope) => {
                let Kind::Request { method, .. } = &envelope.kind else { panic!("{line}") };
                envelope.request(method).unwrap_err()
            }
        };
        assert!(!refusal.message.contains("secret"), "{refusal:?}");
    }
}

proptest! {
    #[test]
    fn whatever_is_said_is_a_message_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Envelope::read(&bytes);
    }

    #[test]
    fn a_message_that_was_tampered_with_is_a_message_or_refused(at in 0usize..150, byte in any::<u8>()) {
        let mut line = json!({"jsonrpc": "2.0", "id": "a", "method": "tools/call",
            "params": {"name": "echo", "arguments": {"a": [1, {"b": "c"}]}, "_meta": {"progressToken": 1, "horos/key": "k"}}})
        .to_string()
        .into_bytes();
        let at = at % line.len();
        line[at] = byte;
        match Envelope::read(&line) {
            Ok(envelope) => match &envelope.kind {
                Kind::Request { method, .. } => drop(envelope.request(method)),
                Kind::Notification { method } => drop(envelope.notification(method)),
                Kind::Answer { result, .. } => drop(answer(*result)),
            },
            Err(refusal) => {
                let told: Value = serde_json::from_slice(&refusal.line()).unwrap();
                prop_assert_eq!(&told["error"]["code"], &json!(refusal.code));
            }
        }
    }
}
