//! Rows of another table of routes, taken into the owner's.

use horos_store::rusqlite::{Connection, OptionalExtension as _};
use horos_wire::protocol::control::{
    ControlError, ImportRoutes, Imported, ImportedRow, LeftRow, MAX_CONFIG, MAX_ENDPOINT, MAX_SERVICE, MAX_STRATEGY, PAGE, WrongRow,
};

use super::{
    Fault, check,
    edits::{Editor, Subject, Was, sign},
    invalid,
    routes::{put, room},
};
use crate::{spec::Row, strategy::Strategies};

/// Whether so many may come at once.
pub(super) fn check_import(ask: &ImportRoutes) -> Result<(), ControlError> {
    if ask.rows.len() > PAGE { Err(invalid(format!("at most {PAGE} rows are imported at a time"))) } else { Ok(()) }
}

/// What makes a row impossible to keep, as opposed to wrong.
fn too_large(row: &ImportedRow) -> Option<&'static str> {
    let beyond = |text: &Option<Box<str>>, most: usize| text.as_deref().is_some_and(|text| text.len() > most);
    if row.service.is_empty() {
        Some("it has no name")
    } else if row.service.len() > MAX_SERVICE {
        Some("its name is too long")
    } else if row.strategy.len() > MAX_STRATEGY {
        Some("its strategy's name is too long")
    } else if beyond(&row.endpoint, MAX_ENDPOINT) {
        Some("its endpoint is too long")
    } else if beyond(&row.config, MAX_CONFIG) {
        Some("its configuration is too long")
    } else {
        None
    }
}

/// Takes in `ask`'s rows, all in the transaction or none.
pub(super) fn import(tx: &Connection, ask: &ImportRoutes, by: &str, strategies: &Strategies) -> Result<Imported, Fault> {
    let mut done = Imported::default();
    let editor = Editor { who: by, why: ask.why.as_deref(), what: "import" };
    let mut find = tx.prepare_cached("SELECT strategy, endpoint, config FROM routes WHERE service_name = ?1")?;
    for it in &ask.rows {
        let left = |why: &str| LeftRow { service: it.service.clone(), why: why.into() };
        if let Some(why) = too_large(it) {
            done.left.push(left(why));
            continue;
        }
        let ImportedRow { service, strategy, endpoint, config } = it.clone();
        let row = Row { service, strategy, endpoint, config, updated_at: 0 };
        let new = Was::new(&row);
        let there = find.query_row([&it.service], Was::read).optional()?.flatten();
        let problems = check::problems(&row, strategies);
        match &there {
            Some(there) if *there == new => {
                done.same.push(it.service.clone());
                continue;
            }
            Some(_) if !ask.replace => {
                done.left.push(left("there is another route of that name"));
                continue;
            }
            Some(_) if !problems.is_empty() => {
                done.left.push(left("it is wrong, and would replace another"));
                done.wrong.push(WrongRow { service: it.service.clone(), problems });
                continue;
            }
            Some(_) => {}
            None => match room(tx) {
                Ok(()) => {}
                Err(Fault::Refused(full)) => {
                    done.left.push(left(&full.to_string()));
                    continue;
                }
                Err(fault) => return Err(fault),
            },
        }
        sign(tx, editor, Subject::Route(&it.service), |tx| put(tx, &it.service, there.is_some(), &new))?;
        if there.is_some() { &mut done.replaced } else { &mut done.added }.push(it.service.clone());
        if !problems.is_empty() {
            done.wrong.push(WrongRow { service: it.service.clone(), problems });
        }
    }
    Ok(done)
}
