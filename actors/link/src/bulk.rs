//! Bulk bodies on a link: a one-way stream each, opening with the body's name.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use horos_supervision::bulk::{BulkError, BulkReader, BulkSink, BulkSource};
use horos_wire::{Bulk, NoEffect};
use quinn::{ReadError, RecvStream, SendStream, WriteError};

use crate::{
    link::Link,
    streams::{self, Type},
};

/// Chunks taken from the stream at once: two GRO batches of Ethernet datagrams.
const CHUNKS: usize = 64;

/// Opens the stream of a body towards the link's peer.
pub(crate) async fn open(link: Arc<Link>, bulk: Bulk) -> Result<Sink, NoEffect> {
    let lost = || NoEffect::NoRoute(link.node.as_str().into());
    let mut stream = streams::open(&link.quinn, Type::Bulk).await.map_err(|_| lost())?;
    stream.write_all(&bulk.0.to_le_bytes()).await.map_err(|_| lost())?;
    Ok(Sink { stream, finished: false })
}

/// A body has begun to come; it waits to be claimed.
pub(crate) async fn arrived(link: &Link, mut stream: RecvStream) {
    let mut name = [0; 16];
    // A stream that ends before its name is nobody's.
    if let Ok(Ok(())) = tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut name)).await {
        let source = Source { stream, chunks: VecDeque::new() };
        link.exchange.bulk_arrived(Bulk(u128::from_le_bytes(name)), link.node.clone(), BulkReader::new(source));
    }
}

struct Source {
    stream: RecvStream,
    chunks: VecDeque<Bytes>,
}

impl BulkSource for Source {
    fn at_hand(&mut self) -> Option<Bytes> {
        self.chunks.pop_front()
    }

    fn chunk(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, BulkError>> {
        Box::pin(async move {
            let mut chunks = [const { Bytes::new() }; CHUNKS];
            let count = self.stream.read_chunks(&mut chunks).await.map_err(|error| match error {
                ReadError::Reset(_) => BulkError::Broken("its sender gave up".into()),
                error => BulkError::Broken(error.to_string().into()),
            })?;
            self.chunks.extend(chunks.into_iter().take(count.unwrap_or(0)));
            Ok(self.chunks.pop_front())
        })
    }
}

pub(crate) struct Sink {
    stream: SendStream,
    finished: bool,
}

fn write_error(error: WriteError) -> BulkError {
    match error {
        WriteError::Stopped(_) => BulkError::Stopped,
        error => BulkError::Broken(error.to_string().into()),
    }
}

impl BulkSink for Sink {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), BulkError>> {
        // QUIC takes the bytes as they are; nothing is copied here.
        Box::pin(async move { self.stream.write_chunk(bytes).await.map_err(write_error) })
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<(), BulkError>> {
        Box::pin(async move {
            self.stream.finish().map_err(|_| BulkError::Stopped)?;
            self.finished = true;
            Ok(())
        })
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if !self.finished {
            // quinn would end it as if it were whole.
            let _ = self.stream.reset(0u32.into());
        }
    }
}
