//! The pages of the tests' program, and a method that tells on whose behalf it was asked.

use std::time::Duration;

use horos_nodes::{
    http::{self, Body, Method, Reply, Request, Response, StatusCode},
    supervision::{Context, Handle, User},
    wire::{Never, context::Claims},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Faults, Faulty};

/// Answers on whose behalf it was asked, as this node can tell.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Who {}

impl Handle<Who> for Faulty {
    async fn handle(&mut self, _: Who, cx: &Context) -> Result<String, Never> {
        Ok(match cx.user() {
            User::None => "nobody".to_owned(),
            User::Asserted(user) => format!("asserted {user}"),
            User::Proven(principal) => match &principal.proof {
                http::Proof::Token { user, .. } => format!("proven {user}"),
                http::Proof::Key { .. } => "a key".to_owned(),
            },
            User::Refused(why) => format!("refused {why}"),
        })
    }
}

/// What a page was asked, as it came there.
#[derive(Debug, Serialize)]
struct Seen {
    node: String,
    method: String,
    version: String,
    path: String,
    query: String,
    request_id: String,
    note: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Note {
    note: String,
}

/// Largest note, in bytes.
const MAX_NOTE: usize = 256 * 1024;

/// Every page.
pub(crate) async fn page(cx: Context, request: Request<Body>) -> Reply {
    let number = |query: &str| query.strip_prefix("n=").and_then(|n| n.parse::<u64>().ok()).unwrap_or(1);
    let query = request.uri().query().unwrap_or_default().to_owned();
    match request.uri().path() {
        "/echo" => {
            let id = request.headers().get("x-request-id").and_then(|it| it.to_str().ok()).unwrap_or_default().to_owned();
            let mut seen = Seen {
                node: cx.node().name.to_string(),
                method: request.method().to_string(),
                version: format!("{:?}", request.version()),
                path: request.uri().path().to_owned(),
                query,
                request_id: id,
                note: None,
            };
            if request.method() == Method::POST {
                match http::read_json::<Note>(request, MAX_NOTE).await {
                    Ok(Note { note }) => seen.note = Some(note),
                    Err(answer) => return Ok(answer),
                }
            }
            http::reply(StatusCode::OK, &seen)
        }
        "/who" => match cx.at::<Faults>("faulty@bo").call(Who {}, Duration::from_secs(5)).await {
            Ok(who) => http::reply(StatusCode::OK, &who),
            Err(error) => Ok(http::unanswered(&error, |never| match *never {})),
        },
        "/asserted" => {
            let named = cx.with_claims(Claims { user: Some("mallory".into()), ..Claims::default() });
            match named.at::<Faults>("faulty@bo").call(Who {}, Duration::from_secs(5)).await {
                Ok(who) => http::reply(StatusCode::OK, &who),
                Err(error) => Ok(http::unanswered(&error, |never| match *never {})),
            }
        }
        "/slow" => {
            tokio::time::sleep(Duration::from_millis(number(&query))).await;
            http::reply(StatusCode::OK, "slow")
        }
        "/large" => Ok(Response::new(Body::from(vec![b'x'; usize::try_from(number(&query)).unwrap_or(0).min(64 << 20)]))),
        "/panic" => panic!("the page is broken on purpose"),
        _ => Ok(http::problem(StatusCode::NOT_FOUND, "There is no such page.")),
    }
}
