//! Routes.

use horos_wire::protocol::control::Route;
use jiff::Timestamp;

use super::{
    Style, clean,
    table::{table, written},
};

/// Routes, a line each.
pub fn routes(routes: &[Route], style: Style) -> String {
    if routes.is_empty() {
        return "(no routes)\n".into();
    }
    let mut out = table(&["SERVICE", "STRATEGY", "ENDPOINT", "CONFIG", "EDITED"], style);
    for it in routes {
        let text = |text: &Option<Box<str>>| text.as_deref().map_or_else(|| "-".to_owned(), clean);
        let edited = Timestamp::from_second(it.updated_at).map_or_else(|_| it.updated_at.to_string(), |at| at.to_string());
        out.add_row([clean(&it.service), it.strategy.to_string(), text(&it.endpoint), text(&it.config), edited]);
    }
    written(&out)
}

#[cfg(test)]
mod tests {
    use horos_wire::protocol::control::{RouteVersion, Strategy};

    use super::*;

    #[test]
    fn routes_are_a_table_that_gives_the_terminal_no_orders() {
        let route = |endpoint: Option<&str>| Route {
            service: "mail\u{1b}[2J".into(),
            strategy: Strategy::Http,
            endpoint: endpoint.map(Into::into),
            config: Some("{}".into()),
            updated_at: 0,
            version: RouteVersion(1),
        };
        let shown = routes(&[route(Some("https://a")), route(None)], Style::PLAIN);
        assert_eq!(shown.lines().count(), 3, "{shown}");
        assert!(!shown.contains('\u{1b}') && shown.contains("1970-01-01T00:00:00Z") && shown.contains(" - "), "{shown}");
        assert_eq!(routes(&[], Style::PLAIN), "(no routes)\n");
    }
}
