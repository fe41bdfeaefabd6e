//! Where a command writes: data to stdout, talk to stderr, and which of both as JSON.

use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use horos_wire::tree::NodeTree;
use serde::Serialize;

use super::{ColorWhen, Usage};
use crate::{
    exit::Exit,
    render::{Style, printable, quiet_json, redraw},
};

/// The program's two outputs.
#[derive(Clone, Debug)]
pub struct Output {
    bin: String,
    json: bool,
    stdout: Style,
    stderr_color: bool,
    /// Nobody reads stdout any more.
    unread: Arc<AtomicBool>,
}

impl Output {
    /// For a program called `bin`. Asks the terminal for its width once.
    pub fn new(bin: &str, json: bool, color: ColorWhen) -> Self {
        // https://no-color.org: set and not empty, whatever its value.
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let wanted = |terminal: bool| match color {
            ColorWhen::Auto => terminal && !refused,
            ColorWhen::Always => true,
            ColorWhen::Never => false,
        };
        let terminal = io::stdout().is_terminal();
        let width = terminal.then(|| Self::size().map(|(width, _)| width)).flatten();
        Self {
            bin: bin.to_owned(),
            json,
            stdout: Style { color: wanted(terminal), width },
            stderr_color: wanted(io::stderr().is_terminal()),
            unread: Arc::default(),
        }
    }

    /// Columns and lines of the terminal that stdout is, as they are now: windows change their size.
    fn size() -> Option<(u16, u16)> {
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
        // A terminal that does not know its size (a serial line) says 0: what the VT100 had.
        Some((if size.ws_col == 0 { 80 } else { size.ws_col }, if size.ws_row == 0 { 24 } else { size.ws_row }))
    }

    /// The whole terminal, to be redrawn at will, where stdout is one that can be.
    pub(crate) fn screen(&self) -> Option<Screen<'_>> {
        let capable = std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        (!self.json && capable && Self::size().is_some()).then_some(Screen { output: self, begun: false })
    }

    /// Whether stdout's reader has gone: what writes without end has then reached it.
    pub(crate) fn is_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }

    /// Whether data goes out as JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// The program's name.
    pub fn bin(&self) -> &str {
        &self.bin
    }

    /// How stdout takes text.
    pub fn style(&self) -> Style {
        self.stdout
    }

    /// Whether log lines may have colours.
    pub fn log_color(&self) -> bool {
        self.stderr_color
    }

    /// Writes data: `value` as JSON, or the text that `text` makes.
    ///
    /// # Errors
    /// [`Exit::Local`] when stdout is full or broken; a reader who has seen enough (`| head`) is no error.
    pub fn data<T: Serialize + ?Sized>(&self, value: &T, text: impl FnOnce(Style) -> String) -> Result<(), Exit> {
        if self.json { self.json(&serde_json::to_string_pretty(value).map_err(|_| Exit::Local)?) } else { self.raw(&text(self.stdout)) }
    }

    /// Writes a JSON text, a node's answer for example, so that no terminal takes any of it for an order.
    ///
    /// # Errors
    /// As [`Output::data`].
    pub fn json(&self, text: &str) -> Result<(), Exit> {
        self.raw(&format!("{}\n", quiet_json(text)))
    }

    /// Writes text to stdout as it is.
    ///
    /// # Errors
    /// As [`Output::data`].
    pub fn raw(&self, text: &str) -> Result<(), Exit> {
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.unread.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => {
                self.say(&format!("cannot write to stdout: {error}"));
                Err(Exit::Local)
            }
        }
    }

    /// Says something to the person at the terminal.
    pub fn say(&self, text: &str) {
        // Nobody is left to tell when stderr is gone.
        // Log lines of other processes pass through here.
        let lines: Vec<_> = text.lines().map(printable).collect();
        let _ = writeln!(io::stderr().lock(), "{}", self.named(&lines.join("\n")));
    }

    /// Tells of a failure, its causes and the next step, and gives back the exit code.
    pub fn fail(&self, exit: Exit, error: &dyn std::error::Error, next: Option<&str>) -> Exit {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            // Some types put the cause into their own text as well; once is enough.
            let said = error.to_string();
            if !text.contains(&said) {
                text = format!("{text}: {said}");
            }
            cause = error.source();
        }
        self.fail_text(exit, &text, next)
    }

    /// Passes on the callee's own error as it came: JSON where it has a JSON form, one line on stderr.
    pub(crate) fn callee(&self, exit: Exit, body: &str) -> Exit {
        let line = match serde_json::from_str::<serde_json::Value>(body) {
            Ok(error) if self.json => serde_json::json!({ "error": error, "next": null, "exit": exit as u8 }).to_string(),
            Ok(error) => error.to_string(),
            Err(_) => return self.fail_text(exit, body, None),
        };
        let _ = writeln!(io::stderr().lock(), "{}", quiet_json(&line)); // as in `say`
        exit
    }

    /// As [`Output::fail`], for a message that its actor could not read: with what it takes.
    pub fn fail_with_schema(&self, exit: Exit, error: &dyn std::error::Error, usage: &Usage) -> Exit {
        if !self.json {
            return self.fail(exit, error, Some(&usage.text));
        }
        let told = serde_json::json!({ "error": error.to_string(), "next": usage.text, "schema": usage.schema, "exit": exit as u8 });
        let _ = writeln!(io::stderr().lock(), "{}", quiet_json(&told.to_string())); // as in `say`
        exit
    }

    /// As [`Output::fail`], for what is no error value.
    pub fn fail_text(&self, exit: Exit, text: &str, next: Option<&str>) -> Exit {
        let (text, next) = (self.named(text), next.map(|next| self.named(next)));
        if self.json {
            let error = serde_json::json!({ "error": text, "next": next, "exit": exit as u8 });
            let _ = writeln!(io::stderr().lock(), "{}", quiet_json(&error.to_string())); // as in `say`
        } else {
            let mark = if self.stderr_color { "\x1b[31merror:\x1b[0m" } else { "error:" };
            let lines: Vec<_> = text.lines().map(crate::render::clean).collect();
            let _ = writeln!(io::stderr().lock(), "{mark} {}", lines.join("\n"));
            if let Some(next) = next {
                let _ = writeln!(io::stderr().lock(), "  {next}");
            }
        }
        exit
    }

    /// Other crates' texts name commands as `horos …`; here the program may be called otherwise.
    fn named(&self, text: &str) -> String {
        text.replace("{bin}", &self.bin).replace("`horos ", &format!("`{} ", self.bin))
    }
}

/// The terminal's second screen (xterm's private mode 1049), with its first one as it was when this goes.
#[derive(Debug)]
pub(crate) struct Screen<'a> {
    output: &'a Output,
    begun: bool,
}

impl Screen<'_> {
    /// Shows trees, and the last lines of a log.
    pub(crate) fn draw(&mut self, heading: &[String], nodes: &[NodeTree], log: &[String]) -> Result<(), Exit> {
        let (width, height) = Output::size().ok_or(Exit::Local)?;
        let style = Style { width: Some(width), ..self.output.style() };
        let begin = if self.begun { "" } else { "\x1b[?1049h\x1b[?25l" };
        self.begun = true;
        self.output.raw(&format!("{begin}{}", redraw(heading, nodes, log, height, style)))
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        if self.begun {
            // A terminal that is gone needs nothing put back.
            let _ = self.output.raw("\x1b[?25h\x1b[?1049l");
        }
    }
}
