//! The gateway's floor: axum on hyper, tokio-rustls and tokio, with our TLS and nothing else.

use std::{convert::Infallible, net::Ipv4Addr, path::Path, sync::Arc};

use axum::{Router, routing::post};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::Ticketer,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::NoServerSessionStorage,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::{
    asked::{self, PATH},
    server::{CERTIFICATE, CERTIFICATE_KEY, Ready},
};

/// Serves until the process ends; to be called on the runtime it is to use.
pub(crate) fn serve(directory: &Path) -> anyhow::Result<Ready> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let tcp = listener.local_addr()?;
    tokio::spawn(accept(TcpListener::from_std(listener)?, Arc::new(tls(directory)?)));
    Ok(Ready { tcp, udp: tcp, key: "none".to_owned() })
}

fn tls(directory: &Path) -> anyhow::Result<ServerConfig> {
    let certificate = CertificateDer::from_pem_file(directory.join(CERTIFICATE))?;
    let key = PrivateKeyDer::from_pem_file(directory.join(CERTIFICATE_KEY))?;
    let mut tls = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key)?;
    // As a node does: a client keeps its session itself.
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.ticketer = Ticketer::new()?;
    tls.send_tls13_tickets = 1;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}

async fn accept(listener: TcpListener, tls: Arc<ServerConfig>) -> anyhow::Result<Infallible> {
    let router = Router::new().route(PATH, post(asked::answer));
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(http(stream, TlsAcceptor::from(tls.clone()), router.clone()));
    }
}

async fn http(stream: TcpStream, tls: TlsAcceptor, router: Router) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let stream = tls.accept(stream).await?;
    http1::Builder::new().serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await?;
    Ok(())
}
