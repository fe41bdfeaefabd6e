//! The small shop of `horos up`: `stock` on the BO owns a table of goods; `shop` on the FO sells from it, to actors and,
//! under `/shop`, to whoever comes over HTTP with a key for it.

use std::time::{Duration, Instant};

use horos_nodes::{
    Database, Horos, Opening,
    http::{self, Access, Body, Method, Reply, Request, Response, StatusCode},
    store::{
        migrations::{Migration, Migrations},
        rusqlite::{self, OptionalExtension as _, params},
        writer::WriteError,
    },
    supervision::{Context, Handle, OpenError, Ref, Restart, Service},
    wire::{CallError, Role, protocol},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const MIGRATIONS: Migrations = Migrations::new(&[Migration {
    version: 1,
    name: "goods",
    sql: "CREATE TABLE goods (sku TEXT PRIMARY KEY, quantity INTEGER NOT NULL CHECK (quantity >= 0)) STRICT, WITHOUT ROWID;
          INSERT INTO goods VALUES ('tea', 40), ('coffee', 25), ('cups', 12);",
}]);

/// For the database to answer when the caller named no sooner time.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn register(n: &mut Horos) {
    let everyone = [Role::Bo, Role::Fo, Role::Operator];
    n.on(Role::Bo).service("stock", Restart::Permanent, Shelf::open).to(&everyone).only(&[Role::Viewer], &["levels"]);
    n.on(Role::Fo).service("shop", Restart::Permanent, |_: Opening| async { Ok::<_, OpenError>(Till) }).to(&everyone);
    let shop = Access::Scope("shop".parse().expect("a literal scope that keeps the rules"));
    n.on(Role::Fo).http("/shop", shop, |opening: Opening| async move {
        let here = opening.context().clone();
        // What a request causes has its trace, its deadline and its user.
        Ok::<_, OpenError>(http::service_fn(move |request: Request<Body>| {
            let cx = here.clone().with_call(http::call_of(&request));
            window(cx, request)
        }))
    });
}

/// Largest order over HTTP, in bytes: a name and a number.
const MAX_ORDER: usize = 4096;

/// The shop's window to the web: `GET /shop` and `GET /shop/levels`, and `POST /shop/order` with an [`Order`].
async fn window(cx: Context, request: Request<Body>) -> Reply {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/" | "/levels") => match cx.at::<Stock>("stock@bo").call(Levels {}, PATIENCE).await {
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
            match cx.at::<Shop>("shop").call(order, PATIENCE).await {
                Ok(receipt) => http::reply(StatusCode::CREATED, &receipt),
                Err(error) => Ok(http::unanswered(&error, OrderError::answer)),
            }
        }
        (_, "/" | "/levels" | "/order") => Ok(http::problem(StatusCode::METHOD_NOT_ALLOWED, "GET /shop/levels, POST /shop/order.")),
        _ => Ok(http::problem(StatusCode::NOT_FOUND, "GET /shop/levels, POST /shop/order.")),
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

impl OrderError {
    fn answer(&self) -> Response<Body> {
        match self {
            Self::Refused { reason } => http::problem(StatusCode::CONFLICT, reason),
            // Why is the operator's to know.
            Self::NotNow { .. } => http::problem(StatusCode::SERVICE_UNAVAILABLE, "Nothing was sold; try again."),
            Self::Unknown { .. } => http::problem(StatusCode::BAD_GATEWAY, "The order may have gone through; look before you try again."),
        }
    }
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
            let left: Option<u32> = tx.query_row("SELECT quantity FROM goods WHERE sku = ?1", [&sku], |row| row.get(0)).optional()?;
            let Some(left) = left else { return Ok(Err(StockError::Unknown { sku: sku.clone() })) };
            let Some(quantity) = i64::from(left).checked_add(by).and_then(|sum| u32::try_from(sum).ok()) else {
                return Ok(Err(StockError::OutOfStock { sku: sku.clone(), left }));
            };
            tx.execute("UPDATE goods SET quantity = ?2 WHERE sku = ?1", params![sku, quantity])?;
            Ok::<_, rusqlite::Error>(Ok(Level { sku: sku.clone(), quantity }))
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
        let read = self.goods.readers.read(deadline, |db| {
            let mut goods = db.prepare_cached("SELECT sku, quantity FROM goods ORDER BY sku LIMIT 1000")?;
            let levels = goods.query_map([], |row| Ok(Level { sku: row.get(0)?, quantity: row.get(1)? }))?;
            levels.collect::<Result<Vec<_>, rusqlite::Error>>()
        });
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
