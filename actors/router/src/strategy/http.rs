//! `http`: a POST to a URL.

use std::sync::Arc;

use super::{Strategy, Target};
use crate::config::Config;

/// Checks rows and reaches nothing: for a node, or a program, without a way out.
pub(super) struct Unreached;

impl Strategy for Unreached {
    fn check(&self, _: &str, endpoint: &str, _: &Config) -> Result<(), String> {
        check(endpoint)
    }

    fn open(&self, _: &str, _: &str, _: &Arc<Config>) -> Result<Target, String> {
        Err("this node reaches nothing over HTTP".to_owned())
    }
}

/// Whether `endpoint` is a URL that may stand in a row. Whether it may be reached is decided when it is.
fn check(endpoint: &str) -> Result<(), String> {
    let wanted = "an absolute URL, such as https://stock.example.org/v1, without a user or password in it";
    let url: ::http::Uri = endpoint.parse().map_err(|error| format!("{error}; it is {wanted}"))?;
    let schemed = matches!(url.scheme_str(), Some("http" | "https"));
    match url.authority() {
        Some(authority) if schemed && !authority.as_str().contains('@') && !authority.host().is_empty() => Ok(()),
        _ => Err(format!("it is {wanted}")),
    }
}
