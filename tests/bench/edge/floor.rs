//! The floor: axum on hyper, tokio-rustls and tokio, and h3 on quinn, with our transport and TLS and nothing else.

use std::{convert::Infallible, net::Ipv4Addr, path::Path, sync::Arc};

use anyhow::Context as _;
use axum::{
    Router,
    http::{Response, StatusCode, header::CONTENT_TYPE},
    routing::get,
};
use bytes::Bytes;
use hyper::server::conn::{http1, http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use quinn::{EndpointConfig, crypto::rustls::QuicServerConfig};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::Ticketer,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::NoServerSessionStorage,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::{
    asked::{self, BODY, PATH},
    server::{CERTIFICATE, CERTIFICATE_KEY, Ready},
};

/// Requests at once on one connection of HTTP/3: as many as a node allows by default.
const STREAMS: u32 = 128;

/// Serves until the process ends; to be called on the runtime it is to use.
pub(crate) fn serve(directory: &Path) -> anyhow::Result<Ready> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let tcp = listener.local_addr()?;
    tokio::spawn(accept(TcpListener::from_std(listener)?, Arc::new(tls(directory, &[b"h2", b"http/1.1"])?)));

    let socket = horos_link::socket((Ipv4Addr::LOCALHOST, 0).into())?;
    let udp = socket.local_addr()?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls(directory, &[b"h3"])?)?));
    let mut transport = horos_link::accepting(horos_link::Config::new(udp).mtu);
    // What the port allows, once it knows that a connection speaks HTTP/3.
    Arc::get_mut(&mut transport).context("a transport of our own")?.max_concurrent_bidi_streams(STREAMS.into());
    server.transport_config(transport);
    let endpoint = quinn::Endpoint::new(EndpointConfig::default(), Some(server), socket, Arc::new(quinn::TokioRuntime))?;
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(async move { http3(incoming.await?).await });
        }
    });
    Ok(Ready { tcp, udp, key: "none".to_owned() })
}

fn tls(directory: &Path, protocols: &[&[u8]]) -> anyhow::Result<ServerConfig> {
    let certificate = CertificateDer::from_pem_file(directory.join(CERTIFICATE))?;
    let key = PrivateKeyDer::from_pem_file(directory.join(CERTIFICATE_KEY))?;
    let mut tls = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key)?;
    // As a node does: a client keeps its session itself.
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.ticketer = Ticketer::new()?;
    tls.send_tls13_tickets = 1;
    tls.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(tls)
}

async fn accept(listener: TcpListener, tls: Arc<ServerConfig>) -> anyhow::Result<Infallible> {
    let router = Router::new().route(PATH, get(asked::answer));
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(http(stream, TlsAcceptor::from(tls.clone()), router.clone()));
    }
}

async fn http(stream: TcpStream, tls: TlsAcceptor, router: Router) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let stream = tls.accept(stream).await?;
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let service = TowerToHyperService::new(router);
    if is_http2 {
        http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await?;
    } else {
        http1::Builder::new().serve_connection(TokioIo::new(stream), service).await?;
    }
    Ok(())
}

/// A plain accept loop of h3, with the answer in its arms.
async fn http3(connection: quinn::Connection) -> anyhow::Result<()> {
    let mut connection = h3::server::builder().max_field_section_size(32 * 1024).build(h3_quinn::Connection::new(connection)).await?;
    while let Some(resolver) = connection.accept().await? {
        tokio::spawn(async move {
            let (request, mut stream) = resolver.resolve_request().await?;
            let found = request.uri().path() == PATH;
            let answer = Response::builder().header(CONTENT_TYPE, "application/json");
            let answer = answer.header("content-length", BODY.len());
            stream.send_response(answer.status(if found { StatusCode::OK } else { StatusCode::NOT_FOUND }).body(())?).await?;
            stream.send_data(Bytes::from_static(BODY)).await?;
            stream.finish().await?;
            anyhow::Ok(())
        });
    }
    Ok(())
}
