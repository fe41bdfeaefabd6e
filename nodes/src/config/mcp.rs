//! The section of the Model Context Protocol: who may come by it, and how much is taken on.

use std::{fmt, str::FromStr, time::Duration};

use http::uri::Authority;

use super::{ByteSize, Programs, WebOrigin, reader::section, secs};

section! {
    /// Tools for language models, by the Model Context Protocol: at /mcp, and over QUIC on this node's addresses.
    pub struct Mcp = "mcp" {
        /// Whether this node serves tools at all.
        enabled = "enabled": bool = true;
        /// Web pages of other origins that may use /mcp, such as `https://chat.example.org`. Requests of a browser's page that is not
        /// listed are refused; programs send no origin.
        allowed_origins = "allowed-origins": Vec<WebOrigin> = Vec::new();
        /// Servers that give out the tokens which are believed here, told to clients that ask where to get one (RFC 9728), such as
        /// `https://login.example.org`.
        authorization_servers = "authorization-servers": Vec<WebServer> = Vec::new();
        /// Scheme and authority under which clients know /mcp, such as `https://shop.example.org`, where that is not what they ask for:
        /// behind a proxy that ends TLS.
        address = "address": Option<WebServer> = None;
        /// Names under which /mcp is answered, such as `shop.example.org` or `shop.example.org:8443`: whoever asks any other, or an
        /// address that is not listed, is refused. Default: every name is answered, and a browser's page is at home at an address, at
        /// localhost, and at the names that are this node's by `mcp.address`, `http.acme-domains` and `listen.advertise`.
        hosts = "hosts": Vec<WebHost> = Vec::new();
        /// Sessions over HTTP and over QUIC, each; at the limit nobody new is taken.
        sessions = "sessions": u32 = 4_096, within 1..=65_536;
        /// A session over QUIC that says nothing for so long is ended.
        idle = "idle": Duration = secs(300), within secs(1)..=secs(86_400);
        /// The same over HTTP, where many clients do not begin another, and people think.
        http_idle = "http-idle": Duration = secs(1_800), within secs(1)..=secs(86_400);
        /// Calls of tools in hand at a time; more are refused.
        calls = "calls": u32 = 512, within 1..=65_536;
        /// Of them, of one caller.
        calls_per_caller = "calls-per-caller": u32 = 128, within 1..=65_536;
        /// The largest result of a call.
        result = "result": ByteSize = ByteSize::mib(1), within ByteSize::kib(16)..=ByteSize::mib(8);
        /// Programs with tools of their own, which this node starts for routes to stdio:NAME and speaks MCP with over their standard
        /// input and output: by name the `command`, a list, and perhaps variables (`env`), variables that have the line of a file in
        /// secrets/ (`secrets`), and the `directory` to start in, which else is the data directory. They have no other variable of the node's than HOME, LANG,
        /// LC_ALL, LOGNAME, PATH, TMPDIR, TZ and USER.
        /// For example: {files: {command: [/usr/bin/python3, /opt/files/server.py], secrets: {TOKEN: files.key}}}
        programs = "programs": Programs = Programs::default();
    }
}

/// A host as requests name it: a DNS name or an address, perhaps with a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebHost(pub(crate) Box<str>);

/// Why a text is no [`WebHost`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a host such as \"shop.example.org\" or \"shop.example.org:8443\", without https:// and without a path")]
pub struct WebHostError;

impl FromStr for WebHost {
    type Err = WebHostError;
    fn from_str(text: &str) -> Result<Self, WebHostError> {
        // What is in a `Host` field, but for a user's name (RFC 9110 §7.2), which nobody writes there. A port is a number if anything.
        let host: Authority = text.parse().map_err(|_| WebHostError)?;
        let port = text.strip_prefix(host.host()).unwrap_or_default();
        let is_plain = !host.host().is_empty() && (port.is_empty() || host.port_u16().is_some());
        if is_plain && !text.contains('@') { Ok(Self(text.into())) } else { Err(WebHostError) }
    }
}

impl fmt::Display for WebHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The address of a server as OAuth names its issuers (RFC 8414 §2): `https`, a host, perhaps a path, and nothing behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebServer(pub(crate) Box<str>);

/// Why a text is no [`WebServer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an address such as \"https://login.example.org\", without ? and #")]
pub struct WebServerError;

impl FromStr for WebServer {
    type Err = WebServerError;
    fn from_str(text: &str) -> Result<Self, WebServerError> {
        // The characters of RFC 3986 that need no escape, and escapes; a user or a password has none of these colons' places.
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~' | b':' | b'[' | b']' | b'/' | b'%');
        match text.strip_prefix("https://") {
            Some(rest) if !rest.is_empty() && !rest.starts_with('/') && text.len() <= 512 && rest.bytes().all(plain) => {
                Ok(Self(text.into()))
            }
            _ => Err(WebServerError),
        }
    }
}

impl fmt::Display for WebServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Sources};

    use super::*;

    #[test]
    fn a_server_that_gives_out_tokens_is_named_by_https_and_without_a_user() {
        for good in ["https://login.example.org", "https://login.example.org:8443/realms/shop", "https://[::1]:8443"] {
            assert_eq!(good.parse::<WebServer>().unwrap().to_string(), good);
        }
        for bad in
            ["", "https://", "https:///x", "http://login.example.org", "https://ana@login.example.org", "https://a/?b", "https://a b"]
        {
            assert_eq!(bad.parse::<WebServer>(), Err(WebServerError), "{bad}");
        }
    }

    #[test]
    fn a_host_is_a_name_or_an_address_and_perhaps_a_port() {
        for good in ["shop.example.org", "shop.example.org:8443", "192.0.2.7", "[2001:db8::7]:7400", "localhost"] {
            assert_eq!(good.parse::<WebHost>().unwrap().to_string(), good);
        }
        for bad in ["", ":8443", "https://shop.example.org", "shop.example.org/mcp", "ana@shop.example.org", "shop.example.org:", "a b"] {
            assert_eq!(bad.parse::<WebHost>(), Err(WebHostError), "{bad}");
        }
    }

    #[test]
    fn the_section_is_read_from_the_file_and_from_variables() {
        let environment = vec![("HOROS__MCP__CALLS".into(), "8".into()), ("HOROS__MCP__ENABLED".into(), "false".into())];
        let sources = Sources { environment, ..Sources::default() };
        let text = "mcp: {hosts: shop.example.org, allowed-origins: [\"https://chat.example.org\"], authorization-servers: \"https://a.example, https://b.example\"}\n";
        let config = Config::from_text(&sources, text).unwrap().mcp;
        assert_eq!((config.enabled, config.calls, config.allowed_origins.len(), config.authorization_servers.len()), (false, 8, 1, 2));
        let told = Config::from_text(&Sources::default(), "mcp: {sessions: 0, idle: 1ms, result: 1GiB, tools: yes}\n").unwrap_err();
        assert_eq!(told.iter().count(), 4, "{told}");
    }
}
