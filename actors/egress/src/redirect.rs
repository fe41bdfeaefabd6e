//! What a redirect makes of a request (RFC 9110 §15.4).
//!
//! Pure. Stricter than the RFC permits: nothing leads from `https` to `http`, a body goes to no origin that the caller has not named,
//! and nothing of the head goes there but what anybody may see.

use http::{HeaderMap, Method, StatusCode, header::LOCATION};

use super::{
    error::{EgressError, RedirectError},
    head,
    target::{Scheme, Target},
};

/// What goes on with a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Onward {
    /// The same method, and the same body, if there is one.
    Same,
    /// GET, or HEAD as before, and no body.
    Without,
}

/// What `status` says of a request that is to be followed; `None`: that is no redirect.
pub(crate) fn onward(status: StatusCode, method: &Method) -> Option<Onward> {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    match status {
        // For these two the RFC lets a POST become a GET, as everybody does, and no other method.
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND if *method == Method::POST => Some(Onward::Without),
        StatusCode::SEE_OTHER if !reads => Some(Onward::Without),
        StatusCode::MOVED_PERMANENTLY
        | StatusCode::FOUND
        | StatusCode::SEE_OTHER
        | StatusCode::TEMPORARY_REDIRECT
        | StatusCode::PERMANENT_REDIRECT => Some(Onward::Same),
        _ => None,
    }
}

/// Where a redirect leads, and what becomes of `method` and `headers`.
pub(crate) fn next(
    here: &Target,
    answer: &HeaderMap,
    onward: Onward,
    has_body: bool,
    method: &mut Method,
    headers: &mut HeaderMap,
) -> Result<Target, RedirectError> {
    let mut locations = answer.get_all(LOCATION).iter();
    let location = locations.next().filter(|_| locations.next().is_none());
    let location = location.and_then(|value| value.to_str().ok()).ok_or(RedirectError::Nowhere)?;
    let there = here.join(location).map_err(|error| RedirectError::Hop(EgressError::Url(error)))?;
    if here.origin.scheme == Scheme::Https && there.origin.scheme == Scheme::Http {
        return Err(RedirectError::Downgrade);
    }
    let elsewhere = there.origin != here.origin;
    match onward {
        Onward::Same if elsewhere && has_body => return Err(RedirectError::BodyElsewhere),
        Onward::Same => {}
        Onward::Without => {
            if *method != Method::HEAD {
                *method = Method::GET;
            }
            head::without_body(headers);
        }
    }
    if elsewhere {
        head::strip(headers);
    }
    Ok(there)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(status: u16, method: Method, location: &str, has_body: bool) -> Result<(String, Method), RedirectError> {
        let here: Target = "https://a.example/x".parse().unwrap();
        let answer = HeaderMap::from_iter([(LOCATION, location.parse().unwrap())]);
        let mut method = method;
        let onward = onward(StatusCode::from_u16(status).unwrap(), &method).unwrap();
        let there = next(&here, &answer, onward, has_body, &mut method, &mut HeaderMap::new())?;
        Ok((there.to_string(), method))
    }

    #[test]
    fn a_status_decides_what_becomes_of_the_method() {
        for (status, before, after) in [
            (301, Method::POST, Method::GET),
            (302, Method::POST, Method::GET),
            (303, Method::POST, Method::GET),
            (303, Method::PUT, Method::GET),
            (303, Method::HEAD, Method::HEAD),
            (301, Method::PUT, Method::PUT),
            (302, Method::DELETE, Method::DELETE),
            (307, Method::POST, Method::POST),
            (308, Method::POST, Method::POST),
        ] {
            assert_eq!(
                follow(status, before.clone(), "y", true).unwrap(),
                ("https://a.example:443/y".to_owned(), after),
                "{status} {before}"
            );
        }
        for status in [200, 300, 304, 305, 306, 400] {
            assert_eq!(onward(StatusCode::from_u16(status).unwrap(), &Method::GET), None, "{status}");
        }
    }

    #[test]
    fn what_a_redirect_must_not_do() {
        assert!(matches!(follow(302, Method::GET, "http://a.example/y", false), Err(RedirectError::Downgrade)));
        assert!(matches!(follow(307, Method::POST, "https://b.example/y", true), Err(RedirectError::BodyElsewhere)));
        assert!(follow(307, Method::POST, "https://b.example/y", false).is_ok());
        assert!(follow(303, Method::POST, "https://b.example/y", true).is_ok());
        assert!(matches!(follow(302, Method::GET, "https://me@b.example", false), Err(RedirectError::Hop(EgressError::Url(_)))));
        let here: Target = "https://a.example/x".parse().unwrap();
        let twice = HeaderMap::from_iter([(LOCATION, "y".parse().unwrap()), (LOCATION, "z".parse().unwrap())]);
        assert_eq!(twice.len(), 2);
        for answer in [HeaderMap::new(), twice] {
            let outcome = next(&here, &answer, Onward::Same, false, &mut Method::GET.clone(), &mut HeaderMap::new());
            assert!(matches!(outcome, Err(RedirectError::Nowhere)));
        }
    }
}
