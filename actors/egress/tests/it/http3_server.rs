//! Hosts of HTTP/3: one that behaves, and one that says exactly what a test wants said.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::SeqCst},
};

use bytes::{Buf as _, Bytes};
use h3::server::RequestStream;
use h3_quinn::BidiStream;
use horos_egress::{Egress, EgressError, Limits, Options, ResponseBody, Roots, Target};
use http::{Method, Request, Response, Version};
use http_body_util::{BodyExt as _, Full};
use quinn::{Connection, Endpoint, RecvStream, SendStream, ServerConfig, VarInt};

use super::server::{Authority, Server};

/// A host, whom its clients believe.
pub(crate) struct Host {
    pub(crate) server: Server,
    pub(crate) authority: Authority,
    pub(crate) endpoint: Endpoint,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.endpoint.close(VarInt::from_u32(0x100), b"");
    }
}

pub(crate) type Asked = RequestStream<BidiStream<Bytes>, Bytes>;

impl Host {
    /// Serves each connection by `serve`.
    pub(crate) fn new<F, S>(serve: F) -> Self
    where
        F: Fn(Server, Connection) -> S + Send + 'static,
        S: Future<Output = ()> + Send + 'static,
    {
        Self::speaking(&["h3"], serve)
    }

    pub(crate) fn speaking<F, S>(alpn: &[&str], serve: F) -> Self
    where
        F: Fn(Server, Connection) -> S + Send + 'static,
        S: Future<Output = ()> + Send + 'static,
    {
        let authority = Authority::new();
        let config = authority.quic("127.0.0.1", alpn);
        Self::configured("127.0.0.1", authority, config, serve)
    }

    /// One at `address`, with a configuration of its own.
    pub(crate) fn configured<F, S>(address: &str, authority: Authority, mut config: ServerConfig, serve: F) -> Self
    where
        F: Fn(Server, Connection) -> S + Send + 'static,
        S: Future<Output = ()> + Send + 'static,
    {
        let mut transport = quinn::TransportConfig::default();
        // So that what it has handed to QUIC is about what its client takes, and what it is sent about what it takes itself.
        transport.send_window(256 * 1024).stream_receive_window(VarInt::from_u32(64 * 1024));
        config.transport_config(Arc::new(transport));
        let endpoint = Endpoint::server(config, SocketAddr::new(address.parse().unwrap(), 0)).unwrap();
        let server = Server { address: endpoint.local_addr().unwrap(), connections: Arc::default(), requests: Arc::default() };
        let (accepting, counted) = (endpoint.clone(), server.clone());
        tokio::spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                let Ok(connection) = incoming.await else { continue };
                counted.connections.fetch_add(1, SeqCst);
                tokio::spawn(serve(counted.clone(), connection));
            }
        });
        Self { server, authority, endpoint }
    }

    /// Answers every request by `answer`.
    pub(crate) fn answering<F, A>(answer: F) -> Self
    where
        F: Fn(Request<()>, Asked) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = ()> + Send + 'static,
    {
        Self::named("127.0.0.1", "127.0.0.1", answer)
    }

    /// The same, at `address` and by `name`.
    pub(crate) fn named<F, A>(address: &str, name: &str, answer: F) -> Self
    where
        F: Fn(Request<()>, Asked) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = ()> + Send + 'static,
    {
        let authority = Authority::new();
        let config = authority.quic(name, &["h3"]);
        Self::configured(address, authority, config, move |server, connection| {
            let answer = answer.clone();
            async move {
                let mut connection = h3::server::Connection::<_, Bytes>::new(h3_quinn::Connection::new(connection)).await.unwrap();
                while let Ok(Some(resolver)) = connection.accept().await {
                    let (answer, server) = (answer.clone(), server.clone());
                    tokio::spawn(async move {
                        let Ok((request, stream)) = resolver.resolve_request().await else { return };
                        server.requests.fetch_add(1, SeqCst);
                        answer(request, stream).await;
                    });
                }
            }
        })
    }

    /// Says what a server has to, and then leaves each request's stream to `act`, with the first of what it said.
    pub(crate) fn raw<F, A>(act: F) -> Self
    where
        F: Fn(Connection, SendStream, RecvStream) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = ()> + Send + 'static,
    {
        Self::new(move |server, connection| {
            let act = act.clone();
            async move {
                let mut control = connection.open_uni().await.unwrap();
                control.write_all(&[&[0][..], &frame(4, b"")].concat()).await.unwrap();
                while let Ok((send, mut receive)) = connection.accept_bi().await {
                    server.requests.fetch_add(1, SeqCst);
                    // Its head; what may follow is `act`'s.
                    let _ = receive.read_chunk(usize::MAX, true).await;
                    tokio::spawn(act(connection.clone(), send, receive));
                }
            }
        })
    }

    /// Says `bytes` to each request, and ends the stream.
    pub(crate) fn says(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::raw(move |_, mut send, _| {
            let bytes = bytes.clone();
            async move {
                let _ = send.write_chunk(bytes).await;
                let _ = send.finish();
                let _ = send.stopped().await;
            }
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}/", self.address())
    }

    pub(crate) fn egress(&self) -> Egress {
        self.egress_with(Options::default())
    }

    /// One that trusts the host, with other options.
    pub(crate) fn egress_with(&self, options: Options) -> Egress {
        let file = self.authority.file();
        let options = Options {
            trusted: vec![self.address().to_string().parse().unwrap()],
            roots: Roots::Files,
            ca_files: vec![file.path().to_owned()],
            ..options
        };
        Egress::new(options).unwrap()
    }
}

/// A request over HTTP/3.
pub(crate) fn asking<B>(method: Method, url: &str, body: B) -> Request<B> {
    let target: Target = url.parse().unwrap();
    Request::builder().method(method).uri(target.to_uri()).version(Version::HTTP_3).body(body).unwrap()
}

pub(crate) async fn get3(egress: &Egress, url: &str, limits: &Limits) -> Result<Response<ResponseBody>, EgressError> {
    egress.send(asking(Method::GET, url, Full::<Bytes>::default()), limits).await
}

pub(crate) async fn read3(egress: &Egress, url: &str, limits: &Limits) -> Result<Bytes, EgressError> {
    get3(egress, url, limits).await?.into_body().collect().await.map(|body| body.to_bytes()).map_err(EgressError::Response)
}

/// All of a request's body, or nothing if it breaks off.
pub(crate) async fn body(asked: &mut Asked) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    while let Some(mut part) = asked.recv_data().await.ok()? {
        whole.extend_from_slice(&part.copy_to_bytes(part.remaining()));
    }
    Some(whole)
}

/// Answers with `text`.
pub(crate) async fn say(mut asked: Asked, response: Response<()>, text: impl Into<Bytes>) {
    let text = text.into();
    let _ = asked.send_response(response).await;
    if !text.is_empty() {
        let _ = asked.send_data(text).await;
    }
    let _ = asked.finish().await;
}

/// A variable-length integer.
pub(crate) fn varint(value: u64) -> Vec<u8> {
    match value {
        0..=0x3f => vec![value as u8],
        0x40..=0x3fff => (value as u16 | 0x4000).to_be_bytes().to_vec(),
        0x4000..=0x3fff_ffff => (value as u32 | 0x8000_0000).to_be_bytes().to_vec(),
        _ => (value | 0xc000_0000_0000_0000).to_be_bytes().to_vec(),
    }
}

/// A frame of HTTP/3.
pub(crate) fn frame(kind: u64, payload: &[u8]) -> Vec<u8> {
    [varint(kind), varint(payload.len() as u64), payload.to_vec()].concat()
}

/// A field, its name and its value literal (RFC 9204 §4.5.6).
fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |flags: u8, most: usize, text: &str| {
        let mut bytes = Vec::new();
        if text.len() < most {
            bytes.push(flags | text.len() as u8);
        } else {
            bytes.push(flags | most as u8);
            let mut left = text.len() - most;
            while left >= 128 {
                bytes.push((left % 128) as u8 | 128);
                left /= 128;
            }
            bytes.push(left as u8);
        }
        bytes.extend_from_slice(text.as_bytes());
        bytes
    };
    [text(0x20, 7, name), text(0, 127, value)].concat()
}

/// The head of a response.
pub(crate) fn head(status: u16, fields: &[(&str, &str)]) -> Vec<u8> {
    let status = status.to_string();
    let all = std::iter::once((":status", &*status)).chain(fields.iter().copied());
    frame(1, &[vec![0, 0], all.flat_map(|(name, value)| field(name, value)).collect()].concat())
}
