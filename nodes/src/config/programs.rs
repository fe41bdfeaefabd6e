//! Programs that speak MCP on their standard input and output, by the names that routes have for them.
//!
//! Only here is said what is run: whoever edits routes can name no command.

use std::{collections::BTreeMap, path::Path, path::PathBuf};

use horos_router::strategy::mcp::ProgramName;
use horos_tools::client::Program as Started;
use serde_json::{Map, Value};

use super::reader::{Leaf, MAX_LISTED, nothing_else};

/// Longest word of a command, or value of a variable, in bytes.
const MAX_WORD: usize = 4096;

/// How one is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The program, a path or a name that is looked for in `PATH`, and its arguments. No shell reads them.
    pub command: Vec<String>,
    /// Variables of its environment, beside the few that it has from the node's own.
    pub env: BTreeMap<String, String>,
    /// Variables that have the line of a file in `secrets/` of the data directory, by the files' names.
    pub secrets: BTreeMap<String, String>,
    /// Where it is started; a relative path starts at the data directory.
    pub directory: Option<PathBuf>,
}

/// All of a node, by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Programs(pub BTreeMap<ProgramName, Program>);

impl Program {
    /// The same as what starts it, of a node with its data in `data` and its secrets in `secrets`.
    pub(crate) fn started(&self, data: &Path, secrets: &Path) -> Started {
        let mut words = self.command.iter();
        // A path that is not whole would mean another file wherever the program is started.
        let program = match words.next().map(String::as_str).unwrap_or_default() {
            name if name.contains('/') => data.join(name).into_os_string(),
            name => name.into(),
        };
        let mut started =
            Started::new(program, words).in_directory(self.directory.as_ref().map_or_else(|| data.into(), |it| data.join(it)));
        for (name, value) in &self.env {
            started = started.with(name, value);
        }
        for (name, file) in &self.secrets {
            started = started.with_secret(name, secrets, file);
        }
        started
    }

    fn read(value: &Value) -> Result<Self, String> {
        const KEYS: [&str; 4] = ["command", "env", "secrets", "directory"];
        let Value::Object(map) = value else { return Err("expected a section with the command".into()) };
        nothing_else(map, &KEYS)?;
        let words = match map.get("command") {
            // One text would be split at commas elsewhere, and by a shell at spaces; here it is one word or none at all.
            Some(Value::Array(words)) => {
                words.iter().map(text).collect::<Result<Vec<_>, _>>().map_err(|what| format!("command: {what}"))?
            }
            _ => return Err("command: expected a list such as [\"/usr/bin/python3\", \"/opt/files/server.py\"]".into()),
        };
        if words.first().is_none_or(String::is_empty) || words.len() > MAX_LISTED {
            return Err(format!("command: expected a program and at most {} arguments", MAX_LISTED - 1));
        }
        let (env, secrets) = (variables(map.get("env"), "env")?, variables(map.get("secrets"), "secrets")?);
        if let Some(file) = secrets.values().find(|file| file.is_empty() || file.contains('/') || *file == "." || *file == "..") {
            return Err(format!("secrets: expected names of files in secrets/, not {file:?}"));
        }
        if let Some(name) = env.keys().find(|name| secrets.contains_key(*name)) {
            return Err(format!("{name} is in env and in secrets"));
        }
        let directory = match map.get("directory") {
            None | Some(Value::Null) => None,
            Some(value) => Some(PathBuf::read(value).map_err(|what| format!("directory: {what}"))?),
        };
        Ok(Self { command: words, env, secrets, directory })
    }

    fn show(&self) -> Value {
        let table = |table: &BTreeMap<String, String>| {
            Value::Object(table.iter().map(|(name, value)| (name.clone(), Value::String(value.clone()))).collect())
        };
        let mut map = Map::new();
        map.insert("command".into(), Value::Array(self.command.iter().map(|word| Value::String(word.clone())).collect()));
        for (key, variables) in [("env", &self.env), ("secrets", &self.secrets)] {
            if !variables.is_empty() {
                map.insert(key.into(), table(variables));
            }
        }
        if let Some(directory) = &self.directory {
            map.insert("directory".into(), directory.show());
        }
        Value::Object(map)
    }
}

/// A word as programs take it.
fn text(value: &Value) -> Result<String, String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        other => return Err(format!("expected texts, not {other}")),
    };
    if text.len() > MAX_WORD || text.contains('\0') {
        return Err(format!("a text has at most {MAX_WORD} bytes, none of them zero"));
    }
    Ok(text)
}

fn variables(value: Option<&Value>, key: &str) -> Result<BTreeMap<String, String>, String> {
    let map = match value {
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(Value::Object(map)) if map.len() <= MAX_LISTED => map,
        Some(Value::Object(_)) => return Err(format!("{key}: {MAX_LISTED} variables at most")),
        Some(_) => return Err(format!("{key}: expected a section of `NAME: value` lines")),
    };
    let mut variables = BTreeMap::new();
    for (name, value) in map {
        // POSIX.1-2017 §8.1.
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !name.starts_with(|c: char| c.is_ascii_digit());
        if name.is_empty() || name.len() > 128 || !plain {
            return Err(format!("{key}: {name:?} names no variable"));
        }
        variables.insert(name.clone(), text(value).map_err(|what| format!("{key}.{name}: {what}"))?);
    }
    Ok(variables)
}

impl Leaf for Programs {
    fn read(value: &Value) -> Result<Self, String> {
        let map = match value {
            Value::Null => return Ok(Self::default()),
            Value::Object(map) => map,
            _ => return Err("expected a section of programs by their names".into()),
        };
        if map.len() > MAX_LISTED {
            return Err(format!("{} are too many, {MAX_LISTED} at most", map.len()));
        }
        let mut wrong = Vec::new();
        let mut programs = BTreeMap::new();
        for (name, value) in map {
            match (name.parse::<ProgramName>(), Program::read(value)) {
                (Ok(parsed), Ok(program)) => drop(programs.insert(parsed, program)),
                (Err(error), _) => wrong.push(format!("{name:?}: {error}")),
                (_, Err(what)) => wrong.push(format!("{name}: {what}")),
            }
        }
        if wrong.is_empty() { Ok(Self(programs)) } else { Err(wrong.join("; ")) }
    }

    fn show(&self) -> Value {
        Value::Object(self.0.iter().map(|(name, program)| (name.to_string(), program.show())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Sources};

    fn read(text: &str) -> Result<Programs, String> {
        Config::from_text(&Sources::default(), text).map(|config| config.mcp.programs).map_err(|problems| problems.to_string())
    }

    #[test]
    fn programs_are_read_with_all_that_they_need_and_shown_as_they_are_read() {
        let text = "\
mcp:
  programs:
    files: {command: [python3, /opt/files.py, --port, 7], env: {MODE: ro}, secrets: {TOKEN: files.key}, directory: files}
    clock: {command: [./clock]}
";
        let programs = read(text).unwrap();
        let files = &programs.0[&"files".parse().unwrap()];
        assert_eq!(files.command, ["python3", "/opt/files.py", "--port", "7"]);
        assert_eq!((&*files.env["MODE"], &*files.secrets["TOKEN"]), ("ro", "files.key"));
        assert_eq!(files.directory.as_deref(), Some(Path::new("files")));
        assert_eq!(Programs::read(&programs.show()).unwrap(), programs);
        let started = format!("{:?}", programs.0[&"clock".parse().unwrap()].started(Path::new("/data"), Path::new("/data/secrets")));
        assert!(started.contains("\"/data/./clock\"") && started.contains("Some(\"/data\")"), "{started}");
        let environment = vec![("HOROS__MCP__PROGRAMS".into(), "{clock: {command: [/bin/clock]}}".into())];
        let sources = Sources { environment, ..Sources::default() };
        assert_eq!(Config::from_text(&sources, "").unwrap().mcp.programs.0.len(), 1);
    }

    #[test]
    fn what_is_wrong_with_programs_is_told_of_all_at_once() {
        for (program, what) in [
            ("Files: {command: [x]}", "a program's name is"),
            ("files: {command: \"python3 server.py\"}", "command: expected a list"),
            ("files: {}", "command: expected a list"),
            ("files: {command: []}", "expected a program"),
            ("files: {command: [\"\"]}", "expected a program"),
            ("files: {command: [x, {}]}", "expected texts"),
            ("files: {command: [x], env: {\"A=B\": c}}", "names no variable"),
            ("files: {command: [x], secrets: {A: ../key}}", "names of files in secrets/"),
            ("files: {command: [x], env: {A: b}, secrets: {A: b}}", "A is in env and in secrets"),
            ("files: {command: [x], enviroment: {}}", "enviroment: unknown key"),
            ("files: [x]", "expected a section with the command"),
        ] {
            let told = read(&format!("mcp: {{programs: {{{program}}}}}\n")).unwrap_err();
            assert!(told.contains("mcp.programs") && told.contains(what), "{program}: {told}");
        }
        let told = read("mcp: {programs: {a: {}, b: {command: 1}}}\n").unwrap_err();
        assert!(told.contains("a: command") && told.contains("b: command"), "{told}");
    }
}
