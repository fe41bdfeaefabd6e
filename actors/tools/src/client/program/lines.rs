//! Lines of a program's output. Of one that is too long the beginning is kept, and the id of the message that it is.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};

use crate::quic::message::MAX_ID;

/// Taken off the pipe at a time: what a pipe holds (pipe(7)).
const CHUNK: usize = 64 * 1024;

/// A line without its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) text: Bytes,
    /// That there was more, and then the member `id` of the object, as it was written, if it is one.
    pub(super) cut: Option<Option<Box<str>>>,
}

/// Reads lines of which at most so many bytes are kept.
pub(super) struct Lines<R> {
    input: BufReader<R>,
    most: usize,
    line: Vec<u8>,
    cut: Option<Scan>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(super) fn new(input: R, most: usize) -> Self {
        Self { input: BufReader::with_capacity(CHUNK, input), most, line: Vec::new(), cut: None }
    }

    /// The next line that is not blank; none at the end, where one without an end is one all the same.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(super) async fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            let bytes = self.input.fill_buf().await?;
            let at_end = bytes.is_empty();
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let taken = &bytes[..end.unwrap_or(bytes.len())];
            let room = self.most - self.line.len();
            if taken.len() > room && self.cut.is_none() {
                let mut scan = Scan::default();
                scan.read(&self.line);
                self.cut = Some(scan);
            }
            if let Some(scan) = &mut self.cut {
                scan.read(taken);
            }
            self.line.extend_from_slice(&taken[..taken.len().min(room)]);
            let used = taken.len() + usize::from(end.is_some());
            self.input.consume(used);
            if end.is_none() && !at_end {
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let cut = self.cut.take().map(|scan| scan.id);
            let text = line.strip_prefix(b"\xEF\xBB\xBF".as_slice()).unwrap_or(&line).trim_ascii();
            if !text.is_empty() || cut.is_some() {
                let text = if text.len() == line.len() { line.into() } else { Bytes::copy_from_slice(text) };
                return Ok(Some(Line { text, cut }));
            }
            if at_end {
                return Ok(None);
            }
        }
    }
}

/// Looks for the member `id` in an object that is not kept.
#[derive(Debug, Default)]
struct Scan {
    depth: u32,
    string: bool,
    escaped: bool,
    /// The beginning of the member of the object itself that is being read, without what is within it.
    member: Vec<u8>,
    id: Option<Box<str>>,
}

impl Scan {
    fn read(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.string {
                self.string = self.escaped || *byte != b'"';
                self.escaped = !self.escaped && *byte == b'\\';
                self.keep(*byte);
                continue;
            }
            match byte {
                b'{' | b'[' => self.depth = self.depth.saturating_add(1),
                b'}' | b']' => {
                    self.end();
                    self.depth = self.depth.saturating_sub(1);
                }
                b',' => self.end(),
                _ => {
                    self.string = *byte == b'"';
                    self.keep(*byte);
                }
            }
        }
    }

    fn keep(&mut self, byte: u8) {
        // The name, a colon and an id of the greatest length, with some room between them.
        if self.depth == 1 && self.member.len() < MAX_ID + 16 {
            self.member.push(byte);
        }
    }

    fn end(&mut self) {
        if self.depth != 1 {
            return;
        }
        let member = std::mem::take(&mut self.member);
        let value = member.trim_ascii().strip_prefix(b"\"id\"").and_then(|rest| rest.trim_ascii().strip_prefix(b":"));
        if let Some(id) = value.and_then(|value| std::str::from_utf8(value.trim_ascii()).ok()) {
            self.id.get_or_insert_with(|| id.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(input: &[u8], most: usize) -> Vec<Line> {
        let mut lines = Lines::new(input, most);
        let mut all = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            all.push(line);
        }
        all
    }

    fn whole(text: &'static str) -> Line {
        Line { text: Bytes::from_static(text.as_bytes()), cut: None }
    }

    #[tokio::test]
    async fn lines_are_taken_whole_and_blank_ones_passed_over() {
        let input = b"{\"a\":1}\r\n\n  \n\xEF\xBB\xBF{\"b\":2}\n{\"c\":3}";
        assert_eq!(read(input, 64).await, [whole("{\"a\":1}"), whole("{\"b\":2}"), whole("{\"c\":3}")]);
        assert_eq!(read(b"", 64).await, []);
        assert_eq!(read(b"12345678\n123456789\n", 8).await[0], whole("12345678"));
    }

    #[tokio::test]
    async fn what_is_too_long_is_known_by_its_id_wherever_that_stands() {
        let long = "x".repeat(300_000);
        for (text, id) in [
            (format!(r#"{{"id":7,"result":{{"id":8,"text":"{long}"}}}}"#), Some("7")),
            (format!(r#"{{"result":{{"list":["{long}",{{"id":9}}],"id":1}},"jsonrpc":"2.0", "id" : "a\"b" }}"#), Some(r#""a\"b""#)),
            (format!(r#"{{"result":"{long}\",\"id\":5,","id":3}}"#), Some("3")),
            (format!(r#"{{"result":"{long}"}}"#), None),
            (format!(r#"[{{"id":3,"result":"{long}"}}]"#), None),
            (long.clone(), None),
        ] {
            let lines = read(format!("{text}\n{{}}\n").as_bytes(), 100).await;
            assert_eq!(lines.len(), 2);
            assert_eq!((lines[0].text.len(), &lines[0].cut), (100, &Some(id.map(Into::into))), "{}", &text[..20]);
            assert_eq!(lines[1], whole("{}"), "what comes behind it is read as ever");
        }
    }
}
