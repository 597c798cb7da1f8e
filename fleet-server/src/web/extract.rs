//! Parts of a request as types; what cannot be read is answered with a problem that says why.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header;
use axum::http::request::Parts;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize as _, Deserializer};
use serde_json::Value;

use super::error::ApiError;
use crate::names::DeviceId;

/// What stands behind the `?`.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = Query::from_request_parts(parts, state).await;
        query.map(|Query(query)| Self(query)).map_err(|error| ApiError::bad_request(error.body_text()))
    }
}

/// The JSON that was sent.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let is_json = request.headers().get(header::CONTENT_TYPE).is_some_and(|kind| {
            let kind = kind.to_str().unwrap_or_default();
            kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
        });
        if !is_json {
            return Err(ApiError::bad_request("send JSON, with `Content-Type: application/json`"));
        }
        let bytes = Bytes::from_request(request, state).await;
        let bytes = bytes.map_err(|error| ApiError::bad_request(error.body_text()))?;
        read(&bytes).map(Self).map_err(|error| ApiError::bad_request(format!("the body: {error}")))
    }
}

/// Reads a body: an object. serde would also take a list of its fields' values, and no whole number that is written `5.0`.
///
/// # Errors
/// When it is none, or not this one.
pub fn read<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Err(serde_json::Error::custom("an object is needed"));
    }
    serde_json::from_slice(bytes).or_else(|error| {
        let mut value: Value = serde_json::from_slice(bytes)?;
        make_whole(&mut value);
        // The first error says where it is.
        serde_json::from_value(value).map_err(|_| error)
    })
}

/// Numbers without a fraction become integers.
fn make_whole(value: &mut Value) {
    match value {
        Value::Number(number) => {
            let whole = number.as_f64().filter(|float| number.is_f64() && float.fract() == 0.0);
            // Every float below 2^64 that has no fraction is an integer of this type.
            if let Some(float) = whole.filter(|float| (0.0..18_446_744_073_709_551_616.0).contains(float)) {
                *value = (float as u64).into();
            }
        }
        Value::Array(list) => list.iter_mut().for_each(make_whole),
        Value::Object(map) => map.values_mut().for_each(make_whole),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// Reads a field that is an object, and is no list of its fields' values.
pub(super) fn object<'de, T: DeserializeOwned, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    let value = Value::deserialize(from)?;
    if value.is_array() {
        return Err(D::Error::custom("an object is needed"));
    }
    serde_json::from_value(value).map_err(D::Error::custom)
}

/// The words in the path, as text.
pub(super) struct Words<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Words<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::from_request_parts(parts, state).await;
        path.map(|Path(words)| Self(words)).map_err(|error| ApiError::bad_request(error.body_text()))
    }
}

/// The number in the path.
pub(super) struct Id(pub(super) u64);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Words(text) = Words::<String>::from_request_parts(parts, state).await?;
        text.parse().map(Self).map_err(|_| ApiError::bad_request("an id is a number"))
    }
}

/// The device in the path.
pub(super) struct OfDevice(pub(super) DeviceId);

impl<S: Send + Sync> FromRequestParts<S> for OfDevice {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Words(text) = Words::<String>::from_request_parts(parts, state).await?;
        super::device_of(&text).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Asked {
        n: u64,
        of: Option<f32>,
    }

    #[test]
    fn a_body_is_an_object_and_its_whole_numbers_may_be_written_as_floats() {
        let good = |text: &str| read::<Asked>(text.as_bytes()).unwrap();
        assert_eq!(good(" {\"n\": 5}"), Asked { n: 5, of: None });
        assert_eq!(good("{\"n\": 5.0, \"of\": 2.5}"), Asked { n: 5, of: Some(2.5) });
        assert_eq!(good("{\"n\": 18446744073709551615}").n, u64::MAX);
        for bad in
            ["", "[5, 1.0]", "5", "{\"n\": 5.5}", "{\"n\": -1.0}", "{\"n\": 1e300}", "{\"n\": 1, \"m\": 2}"]
        {
            assert!(read::<Asked>(bad.as_bytes()).is_err(), "{bad}");
        }
        let error = read::<Asked>(b"{\"n\": \"x\"}").unwrap_err().to_string();
        assert!(error.contains("line 1 column"), "{error}");
    }
}
