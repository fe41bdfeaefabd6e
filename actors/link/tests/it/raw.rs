//! Peers that hold a good certificate and then do as they like: quinn and the wire's own codecs, no session.

use std::{net::SocketAddr, time::Duration};

use horos_link::tls::{Expected, SERVER_NAME, Tls};
use horos_wire::{
    CallContext, CallError, Format, Incarnation, NoEffect, NodeId, Role,
    codec::CodecError,
    control::{self, Bind, Bound, Close, Control, Hello, Offer, Offers},
    frame::{self, Kind, LargeBody, Request},
};
use quinn::{Connection, ConnectionError, Endpoint, EndpointConfig, RecvStream, SendStream};
use tokio::time::timeout;

use super::cluster::Cluster;

const SOON: Duration = Duration::from_secs(5);

/// A peer without manners.
pub(crate) struct Raw {
    pub(crate) id: NodeId,
    pub(crate) connection: Connection,
    pub(crate) control: SendStream,
    pub(crate) control_in: RecvStream,
    pub(crate) messages: SendStream,
    pub(crate) messages_in: RecvStream,
    /// The node's requests, and where their answers go.
    pub(crate) asked: Option<(SendStream, RecvStream)>,
    buffer: Vec<u8>,
    decoder: frame::Decoder,
    _endpoint: Endpoint,
}

/// An endpoint that dials from `from`.
pub(crate) fn dialer(from: &str) -> Endpoint {
    // With room for bursts: a close that the kernel drops is no close with a code.
    let socket = horos_link::socket(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
    Endpoint::new(EndpointConfig::default(), None, socket, std::sync::Arc::new(quinn::TokioRuntime)).unwrap()
}

pub(crate) fn hello(id: &NodeId) -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        features: 0,
        node: id.clone(),
        incarnation: Incarnation(7),
        release: "raw".into(),
        addresses: vec![],
    }
}

pub(crate) async fn connect(endpoint: &Endpoint, tls: &Tls, alpn: &[u8], to: SocketAddr) -> Result<Connection, ConnectionError> {
    let client = tls.client(&[alpn], Expected::AnyNode);
    timeout(SOON, endpoint.connect_with(client, to, SERVER_NAME).unwrap()).await.expect("the handshake ends")
}

/// How the node at the other end closed the connection.
pub(crate) async fn closed(connection: &Connection) -> Close {
    match timeout(Duration::from_secs(8), connection.closed()).await.expect("the node closes the connection") {
        ConnectionError::ApplicationClosed(close) => Close::from_code(close.error_code.into_inner()).expect("a known code"),
        other => panic!("closed without a code: {other}"),
    }
}

impl Raw {
    /// Connects, with its own streams open and nothing said.
    pub(crate) async fn mute(cluster: &Cluster, role: Role, name: &str, to: SocketAddr) -> Self {
        let tls = cluster.tls(role, name);
        let endpoint = dialer("127.0.0.1");
        let connection = connect(&endpoint, &tls, horos_link::ALPN, to).await.unwrap();
        let (mut control, control_in) = connection.open_bi().await.unwrap();
        control.write_all(&[1]).await.unwrap();
        let (mut messages, messages_in) = connection.open_bi().await.unwrap();
        messages.write_all(&[2]).await.unwrap();
        let id = tls.credentials().id().clone();
        Self {
            id,
            connection,
            control,
            control_in,
            messages,
            messages_in,
            asked: None,
            buffer: Vec::new(),
            decoder: frame::Decoder::new(frame::MAX_SMALL_FRAME),
            _endpoint: endpoint,
        }
    }

    /// Connects and opens the session.
    pub(crate) async fn open(cluster: &Cluster, role: Role, name: &str, to: SocketAddr) -> Self {
        let mut raw = Self::mute(cluster, role, name, to).await;
        raw.say(&Control::Hello(hello(&raw.id))).await;
        raw.hear(|frame| matches!(frame, Control::Hello(_)).then_some(())).await;
        let (answers, mut asked) = timeout(SOON, raw.connection.accept_bi()).await.expect("the node opens its own").unwrap();
        let mut kind = [0];
        asked.read_exact(&mut kind).await.unwrap();
        assert_eq!(kind, [2]);
        raw.asked = Some((answers, asked));
        raw
    }

    /// Sends a control frame; whether the node still listens is seen elsewhere.
    pub(crate) async fn say(&mut self, frame: &Control) {
        let mut bytes = Vec::new();
        control::write(&mut bytes, frame).unwrap();
        let _ = self.control.write_all(&bytes).await;
    }

    /// Reads control frames until `pick` takes one.
    pub(crate) async fn hear<T>(&mut self, mut pick: impl FnMut(Control) -> Option<T>) -> T {
        let hear = async {
            loop {
                if let Some((frame, used)) = control::read(&self.buffer).unwrap() {
                    self.buffer.drain(..used);
                    if let Control::Heartbeat { sequence } = frame {
                        self.say(&Control::HeartbeatAck { sequence }).await;
                    }
                    if let Some(picked) = pick(frame) {
                        return picked;
                    }
                    continue;
                }
                let mut chunk = vec![0; 64 * 1024];
                let size = self.control_in.read(&mut chunk).await.unwrap().expect("the control stream goes on");
                self.buffer.extend_from_slice(&chunk[..size]);
            }
        };
        timeout(SOON, hear).await.expect("the frame comes")
    }

    /// Binds a name of the node's.
    pub(crate) async fn bind(&mut self, name: &str) -> Result<u32, NoEffect> {
        let binding = 77;
        self.say(&Control::Bind(Bind { binding, name: name.parse().unwrap(), protocol: Some(("test".into(), 1)) })).await;
        self.hear(|frame| match frame {
            Control::Bound { binding: 77, outcome } => Some(outcome.map(|bound| bound.target)),
            _ => None,
        })
        .await
    }

    /// Offers `name`, and answers the node's question for it.
    pub(crate) async fn offer(&mut self, name: &str, protocol: &str) {
        let offer = Offer { name: name.parse().unwrap(), protocol: protocol.into(), version: 1 };
        self.say(&Control::Offers(Offers { names: vec![offer], ready: true })).await;
    }

    pub(crate) async fn answer_bind(&mut self) {
        let binding = self.hear(|frame| if let Control::Bind(bind) = frame { Some(bind.binding) } else { None }).await;
        let bound = Bound { target: 1, protocol: "test".into(), version: 1, methods: vec![] };
        self.say(&Control::Bound { binding, outcome: Ok(bound) }).await;
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        let _ = self.messages.write_all(bytes).await;
    }

    pub(crate) async fn call(&mut self, target: u32, method: u16, correlation: u64, body: &[u8]) {
        self.write(&request(Kind::Call, target, method, correlation, body)).await;
    }

    /// The answer to `correlation`, from the message stream.
    pub(crate) async fn answer(&mut self, correlation: u64) -> Result<Vec<u8>, CallError<()>> {
        let answers = timeout(SOON, self.answers(&[correlation])).await.expect("the answer comes");
        answers.into_iter().next().unwrap()
    }

    /// The answers to several calls, in the order asked for.
    pub(crate) async fn answers(&mut self, correlations: &[u64]) -> Vec<Result<Vec<u8>, CallError<()>>> {
        let mut answers = vec![None; correlations.len()];
        while answers.iter().any(Option::is_none) {
            while let Some(frame) = self.decoder.next_frame().unwrap() {
                let Some(at) = correlations.iter().position(|asked| *asked == frame.header.correlation) else { continue };
                let body = frame.body;
                let answer = match frame.header.kind {
                    Kind::Reply => Ok(body.to_vec()),
                    Kind::Failed => Err(CallError::Failed(())),
                    Kind::Refused => Err(CallError::NoEffect(horos_wire::codec::decode(Format::Bincode, body).unwrap())),
                    Kind::Lost => Err(CallError::Unknown(horos_wire::codec::decode(Format::Bincode, body).unwrap())),
                    kind => panic!("a {kind:?} in place of an answer"),
                };
                assert!(answers[at].replace(answer).is_none(), "two answers to one call");
            }
            if answers.iter().any(Option::is_none) {
                let chunk = self.messages_in.read_chunk(64 * 1024, true).await.unwrap();
                self.decoder.push(chunk.expect("the message stream goes on").bytes);
            }
        }
        answers.into_iter().flatten().collect()
    }

    /// Answers heartbeats until it is aborted.
    pub(crate) fn stay(mut self) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move {
            loop {
                self.hear(|frame| matches!(frame, Control::Heartbeat { .. }).then_some(())).await;
            }
        })
    }

    pub(crate) async fn closed(&self) -> Close {
        closed(&self.connection).await
    }
}

pub(crate) fn request(kind: Kind, target: u32, method: u16, correlation: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let context = CallContext::default();
    let request = Request { kind, format: Format::Bincode, method, target, correlation, remaining_ms: Some(60_000), context: &context };
    frame::write_request::<CodecError>(&mut bytes, request, false, |into| {
        into.extend_from_slice(body);
        Ok(())
    })
    .unwrap();
    bytes
}

/// A request whose body travels on a stream of its own.
pub(crate) fn placeholder(target: u32, method: u16, correlation: u64, large: LargeBody) -> Vec<u8> {
    let mut bytes = Vec::new();
    let context = CallContext::default();
    let request =
        Request { kind: Kind::Call, format: Format::Bincode, method, target, correlation, remaining_ms: Some(60_000), context: &context };
    frame::write_request::<CodecError>(&mut bytes, request, true, |into| {
        into.extend_from_slice(&large.to_bytes());
        Ok(())
    })
    .unwrap();
    bytes
}

/// A body as bincode writes `Echo`.
pub(crate) fn encoded<T: serde::Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    horos_wire::codec::encode(Format::Bincode, value, &mut bytes).unwrap();
    bytes
}
