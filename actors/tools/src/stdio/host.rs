//! The host's end of the bridge.

use std::io;

use bytes::Bytes;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader},
    sync::mpsc,
};

use crate::quic::MAX_MESSAGE;

/// Taken off the input at a time.
const CHUNK: usize = 64 * 1024;
/// Written at a time.
const BATCH: usize = 64;

/// A line of the host's.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Message(Bytes),
    /// It was passed over.
    TooLarge,
}

/// Reads lines until the input ends, or nobody wants them.
pub(super) async fn read<R: AsyncRead + Unpin>(input: R, lines: mpsc::Sender<Result<Line, io::Error>>) {
    let mut input = BufReader::with_capacity(CHUNK, input);
    loop {
        let line = match next(&mut input).await {
            Ok(Some(line)) => Ok(line),
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let failed = line.is_err();
        if lines.send(line).await.is_err() || failed {
            return;
        }
    }
}

/// The next line that is not blank. No more of it is kept than a message may have.
async fn next<R: AsyncRead + Unpin>(input: &mut BufReader<R>) -> io::Result<Option<Line>> {
    let mut line = Vec::new();
    let mut too_large = false;
    loop {
        let bytes = input.fill_buf().await?;
        let ends = bytes.is_empty();
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let taken = end.unwrap_or(bytes.len());
        too_large = too_large || line.len() + taken > MAX_MESSAGE;
        if !too_large {
            line.extend_from_slice(&bytes[..taken]);
        }
        input.consume(taken + usize::from(end.is_some()));
        if end.is_none() && !ends {
            continue;
        }
        if too_large {
            return Ok(Some(Line::TooLarge));
        }
        let text = line.trim_ascii();
        if !text.is_empty() {
            let text = if text.len() == line.len() { line.into() } else { Bytes::copy_from_slice(text) };
            return Ok(Some(Line::Message(text)));
        }
        if ends {
            return Ok(None);
        }
        line.clear();
    }
}

/// Writes lines until there are no more, several at a time when several wait.
pub(super) async fn write<W: AsyncWrite + Unpin>(mut output: W, mut lines: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    let mut batch = Vec::with_capacity(BATCH);
    while lines.recv_many(&mut batch, BATCH).await > 0 {
        for line in batch.drain(..) {
            output.write_all(&line).await?;
        }
        output.flush().await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(input: &[u8]) -> Vec<Line> {
        let (sender, mut lines) = mpsc::channel(64);
        read(input, sender).await;
        let mut all = Vec::new();
        while let Some(line) = lines.recv().await {
            all.push(line.unwrap());
        }
        all
    }

    #[tokio::test]
    async fn lines_are_taken_whole_and_what_is_too_large_is_passed_over() {
        let mut input = b"{\"a\":1}\r\n\n  \n{\"b\":2}\n".to_vec();
        input.extend(std::iter::repeat_n(b'x', MAX_MESSAGE + 1));
        input.extend_from_slice(b"\n{\"c\":3}");
        let message = |text: &'static str| Line::Message(Bytes::from_static(text.as_bytes()));
        assert_eq!(lines(&input).await, [message("{\"a\":1}"), message("{\"b\":2}"), Line::TooLarge, message("{\"c\":3}")]);
        assert_eq!(lines(b"").await, []);
    }
}
