//! The small shop of `horos up`: `stock` on the BO owns a table of goods, of which the FO keeps a replica without what is nobody's
//! business: what goods cost the shop, and those that are not yet sold. `shop` on the FO sells, to actors and, under `/shop`, to whoever
//! comes over HTTP with a key for it: it reads from the replica and passes orders on to the BO.

use std::time::{Duration, Instant};

use horos_nodes::{
    Database, Horos, Opening,
    dbsync::{
        filter::{FilterSpec, PartialTable},
        replica::Replica,
    },
    http::{self, Access, Body, Method, Reply, Request, Response, StatusCode},
    store::{
        migrations::{Migration, Migrations},
        rusqlite::{self, Connection, OptionalExtension as _, params},
        writer::WriteError,
    },
    supervision::{Context, Handle, OpenError, Ref, Restart, Service},
    wire::{CallError, Role, protocol},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const MIGRATIONS: Migrations = Migrations::new(&[
    Migration {
        version: 1,
        name: "goods",
        sql: "CREATE TABLE goods (sku TEXT PRIMARY KEY, quantity INTEGER NOT NULL CHECK (quantity >= 0)) STRICT, WITHOUT ROWID;
              INSERT INTO goods VALUES ('tea', 40), ('coffee', 25), ('cups', 12);",
    },
    Migration {
        version: 2,
        name: "prices",
        sql: "ALTER TABLE goods ADD COLUMN price INTEGER NOT NULL DEFAULT 500;
              ALTER TABLE goods ADD COLUMN cost INTEGER NOT NULL DEFAULT 300;
              ALTER TABLE goods ADD COLUMN listed INTEGER NOT NULL DEFAULT 1;
              INSERT INTO goods VALUES ('mystery-box', 3, 9900, 8000, 0);",
    },
]);

/// The publication, and the replica's file.
const PUBLICATION: &str = "shop";
const REPLICA: &str = "public.db";

/// What of the goods the FO has: those that are listed, without their cost.
fn published() -> FilterSpec {
    let goods =
        PartialTable { columns: ["quantity", "price", "listed"].map(str::to_owned).into(), condition: Some("listed = 1".to_owned()) };
    FilterSpec { partial_tables: [("goods".to_owned(), goods)].into(), ..FilterSpec::default() }
}

/// For the database to answer when the caller named no sooner time.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn register(n: &mut Horos) {
    let everyone = [Role::Bo, Role::Fo, Role::Operator];
    n.on(Role::Bo).service("stock", Restart::Permanent, Shelf::open).to(&everyone).only(&[Role::Viewer], &["levels"]);
    n.on(Role::Fo).service("shop", Restart::Permanent, |_: Opening| async { Ok::<_, OpenError>(Till) }).to(&everyone);
    n.on(Role::Bo).publish(PUBLICATION, "app.db", published(), &[Role::Fo]);
    n.on(Role::Fo).replica(PUBLICATION, REPLICA);
    let shop = Access::Scope("shop".parse().expect("a literal scope that keeps the rules"));
    // Orders are the BO's to take, whichever node they come in by.
    n.on(Role::Bo).http("/shop", shop.clone(), |opening: Opening| async move {
        let here = opening.context().clone();
        // What a request causes has its trace, its deadline and its user.
        Ok::<_, OpenError>(http::service_fn(move |request: Request<Body>| {
            let cx = here.clone().with_call(http::call_of(&request));
            counter(cx, request)
        }))
    });
    n.on(Role::Fo).http_reads("/shop", shop, &[PUBLICATION], |opening: Opening| async move {
        let goods = opening.replica(PUBLICATION)?;
        Ok::<_, OpenError>(http::service_fn(move |request: Request<Body>| window(goods.clone(), request)))
    });
}

/// Largest order over HTTP, in bytes: a name and a number.
const MAX_ORDER: usize = 4096;

/// What the shop answers where it is asked for something else.
const USAGE: &str = "GET /shop/levels, POST /shop/order.";

/// The shop's window, on the FO: `GET /shop` and `GET /shop/levels`, from the replica. Nobody on the BO is asked.
async fn window(goods: Replica, request: Request<Body>) -> Reply {
    if !matches!(request.uri().path(), "/" | "/levels") {
        return Ok(http::problem(StatusCode::NOT_FOUND, USAGE));
    }
    let deadline = http::call_of(&request).deadline.unwrap_or_else(|| Instant::now() + PATIENCE);
    match goods.read(deadline, levels).await {
        Ok(levels) => http::reply(StatusCode::OK, &levels),
        // Nothing has arrived yet, or too many ask.
        Err(_) => Ok(http::problem(StatusCode::SERVICE_UNAVAILABLE, "Nobody can look now; try again.")),
    }
}

/// What is on the shelf, as the table says; the same on both nodes.
fn levels(db: &Connection) -> rusqlite::Result<Vec<Level>> {
    let mut goods = db.prepare_cached("SELECT sku, quantity, price FROM goods WHERE listed = 1 ORDER BY sku LIMIT 1000")?;
    let levels = goods.query_map([], |row| Ok(Level { sku: row.get(0)?, quantity: row.get(1)?, price: row.get(2)? }))?;
    levels.collect()
}

/// The shop's counter, on the BO: `POST /shop/order` with an [`Order`], and `GET /shop/levels` for who cannot wait for a replica.
async fn counter(cx: Context, request: Request<Body>) -> Reply {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/" | "/levels") => match cx.at::<Stock>("stock").call(Levels {}, PATIENCE).await {
            Ok(levels) => http::reply(StatusCode::OK, &levels),
            Err(error) => {
                Ok(http::unanswered(&error, |_| http::problem(StatusCode::SERVICE_UNAVAILABLE, "Nobody can look now; try again.")))
            }
        },
        (&Method::POST, "/order") => {
            let order: Order = match http::read_json(request, MAX_ORDER).await {
                Ok(order) => order,
                Err(answer) => return Ok(answer),
            };
            let sold = order.quantity;
            match cx.at::<Stock>("stock").call(Reserve { sku: order.sku, quantity: sold }, PATIENCE).await {
                Ok(level) => http::reply(StatusCode::CREATED, &Receipt { sold, left: level.quantity, sold_by: cx.node().name.to_string() }),
                Err(error) => Ok(http::unanswered(&error, StockError::answer)),
            }
        }
        (_, "/" | "/levels" | "/order") => Ok(http::problem(StatusCode::METHOD_NOT_ALLOWED, USAGE)),
        _ => Ok(http::problem(StatusCode::NOT_FOUND, USAGE)),
    }
}

/// Asks what there is.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Levels {}

/// How much there is of one thing.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Level {
    sku: String,
    quantity: u32,
    /// In cents.
    price: u32,
}

/// Takes some off the shelf.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Reserve {
    sku: String,
    quantity: u32,
}

/// Puts some on the shelf.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Restock {
    sku: String,
    quantity: u32,
}

/// Why the shelf will not.
#[derive(Debug, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StockError {
    #[error("{sku}: only {left} left")]
    OutOfStock { sku: String, left: u32 },
    #[error("{sku}: not sold here")]
    Unknown { sku: String },
    #[error("the database did not take it: {reason}")]
    Database { reason: String },
    #[error("whether it was taken is not known: {reason}")]
    OutcomeUnknown { reason: String },
}

impl StockError {
    fn answer(&self) -> Response<Body> {
        match self {
            Self::OutOfStock { .. } | Self::Unknown { .. } => http::problem(StatusCode::CONFLICT, &self.to_string()),
            // Why is the operator's to know.
            Self::Database { .. } => http::problem(StatusCode::SERVICE_UNAVAILABLE, "Nothing was sold; try again."),
            Self::OutcomeUnknown { .. } => {
                http::problem(StatusCode::BAD_GATEWAY, "The order may have gone through; look before you try again.")
            }
        }
    }
}

protocol! {
    /// What the BO's shelf answers.
    pub(crate) Stock = "stock" v1 {
        1 levels: Levels => Vec<Level>, StockError;
        2 reserve: Reserve => Level, StockError;
        3 restock: Restock => Level, StockError;
    }
}

/// Buys something.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Order {
    sku: String,
    quantity: u32,
}

/// Something was bought.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Receipt {
    sold: u32,
    left: u32,
    /// The node that answered.
    sold_by: String,
}

/// Why nothing was bought, as far as is known.
#[derive(Debug, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OrderError {
    #[error("{reason}")]
    Refused { reason: String },
    #[error("try again: {reason}")]
    NotNow { reason: String },
    #[error("the order may have gone through: {reason}")]
    Unknown { reason: String },
}

protocol! {
    /// What the FO's till answers.
    pub(crate) Shop = "shop" v1 {
        1 order: Order => Receipt, OrderError;
    }
}

/// Owns the goods.
struct Shelf {
    goods: Database,
}

impl Shelf {
    async fn open(opening: Opening) -> Result<Self, OpenError> {
        Ok(Self { goods: opening.database("app.db", MIGRATIONS).await? })
    }

    async fn change(&self, cx: &Context, sku: String, by: i64) -> Result<Level, StockError> {
        let deadline = cx.call().deadline.unwrap_or_else(|| Instant::now() + PATIENCE);
        let changed = self.goods.writer.transaction(deadline, move |tx| {
            let known = tx
                .query_row("SELECT quantity, price FROM goods WHERE sku = ?1 AND listed = 1", [&sku], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let Some((left, price)): Option<(u32, u32)> = known else { return Ok(Err(StockError::Unknown { sku: sku.clone() })) };
            let Some(quantity) = i64::from(left).checked_add(by).and_then(|sum| u32::try_from(sum).ok()) else {
                return Ok(Err(StockError::OutOfStock { sku: sku.clone(), left }));
            };
            tx.execute("UPDATE goods SET quantity = ?2 WHERE sku = ?1", params![sku, quantity])?;
            Ok::<_, rusqlite::Error>(Ok(Level { sku: sku.clone(), quantity, price }))
        });
        match changed.await {
            Ok(outcome) => outcome,
            Err(error) if WriteError::had_no_effect(&error) => Err(StockError::Database { reason: error.to_string() }),
            Err(error) => Err(StockError::OutcomeUnknown { reason: error.to_string() }),
        }
    }
}

impl Service for Shelf {
    type Protocol = Stock;
}

impl Handle<Levels> for Shelf {
    async fn handle(&mut self, _: Levels, cx: &Context) -> Result<Vec<Level>, StockError> {
        let deadline = cx.call().deadline.unwrap_or_else(|| Instant::now() + PATIENCE);
        let read = self.goods.readers.read(deadline, levels);
        read.await.map_err(|error| StockError::Database { reason: error.to_string() })
    }
}

impl Handle<Reserve> for Shelf {
    async fn handle(&mut self, reserve: Reserve, cx: &Context) -> Result<Level, StockError> {
        self.change(cx, reserve.sku, -i64::from(reserve.quantity)).await
    }
}

impl Handle<Restock> for Shelf {
    async fn handle(&mut self, restock: Restock, cx: &Context) -> Result<Level, StockError> {
        self.change(cx, restock.sku, i64::from(restock.quantity)).await
    }
}

/// Sells what the BO has.
struct Till;

impl Service for Till {
    type Protocol = Shop;
}

impl Handle<Order> for Till {
    async fn handle(&mut self, order: Order, cx: &Context) -> Result<Receipt, OrderError> {
        let stock: Ref<Stock> = cx.at("stock@bo");
        let reserve = Reserve { sku: order.sku, quantity: order.quantity };
        match stock.call(reserve, PATIENCE).await {
            Ok(level) => Ok(Receipt { sold: order.quantity, left: level.quantity, sold_by: cx.node().name.to_string() }),
            Err(CallError::Failed(error)) => Err(OrderError::Refused { reason: error.to_string() }),
            Err(CallError::NoEffect(error)) => Err(OrderError::NotNow { reason: error.to_string() }),
            Err(CallError::Unknown(error)) => Err(OrderError::Unknown { reason: error.to_string() }),
        }
    }
}
