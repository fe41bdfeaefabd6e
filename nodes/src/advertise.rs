//! Looks up where others are told to dial this node (`listen.advertise`), once, when it starts.

use std::{io, net::SocketAddr, time::Duration};

use crate::config::{Advertised, MAX_ADVERTISED, dialable};

/// For a name to be looked up: longer than a resolver waits for a server that does not answer, before it asks the next.
const LOOK_UP: Duration = Duration::from_secs(6);

/// A place in `listen.advertise` cannot be told to others.
#[derive(Debug, thiserror::Error)]
#[error("listen.advertise: {place}: {why}; name an address that others reach this node by")]
pub(crate) struct AdvertiseError {
    place: Advertised,
    why: String,
}

/// The addresses of `places` for a node that listens on `port`, [`MAX_ADVERTISED`] at most. A name may have several; those that
/// nobody can dial are left out.
///
/// # Errors
/// [`AdvertiseError`] for a place without any: a node that others look for elsewhere had better not start.
pub(crate) async fn resolve(places: &[Advertised], port: u16) -> Result<Vec<SocketAddr>, AdvertiseError> {
    let mut found: Vec<SocketAddr> = Vec::new();
    for place in places {
        let wrong = |why: String| AdvertiseError { place: place.clone(), why };
        let mut addresses = match place.known(port) {
            Some(known) => vec![known],
            None => look_up(place, port).await.map_err(|error| wrong(error.to_string()))?,
        };
        addresses.retain(|address| dialable(address.ip()));
        if addresses.is_empty() {
            return Err(wrong("it has no address that could be dialled".to_owned()));
        }
        for address in addresses {
            if !found.contains(&address) {
                found.push(address);
            }
        }
    }
    found.truncate(MAX_ADVERTISED);
    Ok(found)
}

async fn look_up(place: &Advertised, port: u16) -> io::Result<Vec<SocketAddr>> {
    let looking = tokio::net::lookup_host((&*place.host, place.port.unwrap_or(port)));
    Ok(tokio::time::timeout(LOOK_UP, looking).await.map_err(|_| io::ErrorKind::TimedOut)??.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(texts: &[&str]) -> Vec<Advertised> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn an_address_takes_the_nodes_own_port_and_a_name_is_looked_up() {
        let found = resolve(&places(&["192.0.2.7", "[2001:db8::7]:9", "192.0.2.7:7400"]), 7400).await.unwrap();
        assert_eq!(found, ["192.0.2.7:7400".parse().unwrap(), "[2001:db8::7]:9".parse().unwrap()], "each once");
        let found = resolve(&places(&["localhost:9"]), 7400).await.unwrap();
        assert!(!found.is_empty() && found.iter().all(|address| address.ip().is_loopback() && address.port() == 9), "{found:?}");
        assert_eq!(resolve(&[], 7400).await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_told_by_its_name() {
        // RFC 6761 §6.4: no resolver ever finds it.
        let error = resolve(&places(&["192.0.2.7", "bo-1.invalid:7400"]), 7400).await.unwrap_err();
        assert!(error.to_string().starts_with("listen.advertise: bo-1.invalid:7400: "), "{error}");
    }
}
