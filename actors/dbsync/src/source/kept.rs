//! What a source knows of its file, kept outside of it: the file cannot testify for itself once it was replaced.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::union::Wanted;
use crate::capture::{Key, Tracked, Witness};

/// Largest such file that is read: 1,000 tables with 100 bytes of name and as much of hashes each are far below.
const MAX_BYTES: u64 = 16 << 20;

/// The witness, and which table has which number in the log.
///
/// A number is never given twice within an epoch, not even to the table that had it before: entries of before would be taken for
/// its. So a table that comes back, or gets another key, gets another number, and is sent whole once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    /// What was last seen in the file.
    pub(super) witness: Option<Witness>,
    /// The last number given.
    last: u32,
    /// By the table's name and key.
    numbers: BTreeMap<String, u32>,
}

impl Kept {
    /// Reads what was kept in `path`. What cannot be read is as good as nothing: everything is re-based, and that is logged.
    pub(super) fn load(path: &Path) -> Kept {
        match read(path) {
            Ok(kept) => kept,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Kept::default(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the witness cannot be read: every replica gets a snapshot");
                Kept::default()
            }
        }
    }

    /// Writes it down, on disk when this returns.
    pub(super) fn save(&self, path: &Path) -> io::Result<()> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        // Made anew each time, so that no older one's permissions are taken over.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        File::open(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?.sync_all()
    }

    /// Gives every wanted table its number; whether one of them is new, so that this must be saved before the number is used.
    pub(super) fn number(&mut self, wanted: &[Wanted]) -> (Vec<Tracked>, bool) {
        let before = self.last;
        let tracked: Vec<Tracked> = wanted
            .iter()
            .map(|table| Tracked {
                number: self.numbers.get(&label(table)).copied().unwrap_or_else(|| {
                    self.last += 1;
                    self.last
                }),
                name: table.name.clone(),
                columns: table.columns.clone(),
                key: table.key.clone(),
            })
            .collect();
        (tracked, self.last != before)
    }

    /// These are attached now; others' numbers are spent.
    pub(super) fn attached(&mut self, wanted: &[Wanted], tracked: &[Tracked]) {
        self.numbers = wanted.iter().map(label).zip(tracked.iter().map(|table| table.number)).collect();
    }
}

fn label(table: &Wanted) -> String {
    let key = match &table.key {
        Key::Rowid => String::new(),
        Key::Columns(columns) => columns.iter().map(|column| crate::capture::quote(column)).collect::<Vec<_>>().join(","),
    };
    format!("{}({key})", crate::capture::quote(&table.name.to_ascii_lowercase()))
}

fn read(path: &Path) -> io::Result<Kept> {
    if fs::metadata(path)?.len() > MAX_BYTES {
        return Err(io::Error::other("larger than any witness"));
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(name: &str, key: &[&str]) -> Wanted {
        let key = if key.is_empty() { Key::Rowid } else { Key::Columns(key.iter().map(|name| (*name).to_owned()).collect()) };
        Wanted { name: name.into(), columns: vec!["a".into()], key }
    }

    fn numbers(kept: &mut Kept, wanted: &[Wanted]) -> Vec<u32> {
        let (tracked, _) = kept.number(wanted);
        kept.attached(wanted, &tracked);
        tracked.iter().map(|table| table.number).collect()
    }

    #[test]
    fn a_number_is_a_tables_for_as_long_as_it_stays_and_nobodys_afterwards() {
        let mut kept = Kept::default();
        let (a, b, keyed) = (wanted("a", &[]), wanted("B", &["x"]), wanted("a", &["x"]));
        assert_eq!(numbers(&mut kept, &[a.clone(), b.clone()]), [1, 2]);
        assert_eq!(numbers(&mut kept, &[wanted("A", &[]), wanted("b", &["x"])]), [1, 2], "names are compared as SQLite does");
        assert_eq!(numbers(&mut kept, &[keyed, b.clone()]), [3, 2], "another key is another number");
        assert_eq!(numbers(&mut kept, &[a, b.clone()]), [4, 2], "and who comes back has a new one");
        assert_eq!(
            kept.number(&[b]),
            (vec![Tracked { number: 2, name: "B".into(), columns: vec!["a".into()], key: Key::Columns(vec!["x".into()]) }], false)
        );
    }

    #[test]
    fn what_is_kept_is_private_and_reads_back_and_damage_is_as_good_as_nothing() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shop.witness.json");
        assert_eq!(Kept::load(&path), Kept::default());
        let mut kept = Kept::default();
        numbers(&mut kept, &[wanted("a", &[])]);
        kept.save(&path).unwrap();
        kept.save(&path).unwrap();
        assert_eq!(Kept::load(&path), kept);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        fs::write(&path, "{\"last\":").unwrap();
        assert_eq!(Kept::load(&path), Kept::default());
    }
}
