//! Baselines and program files over HTTPS, for devices that show their certificate: in ranges (RFC 9110, section 14), so that a
//! fetch goes on where it was. What a device may fetch is what it may fetch over MQTT.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use data_encoding::HEXLOWER_PERMISSIVE;
use futures_util::stream;
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::error::ApiError;
use super::extract::Words;
use crate::counters::Counter;
use crate::names::DeviceId;
use crate::pki;
use crate::server::Shared;
use crate::store::{self, Known};

/// Bytes read from the store at a time.
const PIECE: u32 = 64 * 1024;

/// The certificate that a connection showed; it is of our authority.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    device: DeviceId,
    key_sha256: [u8; 32],
}

impl Shown {
    /// `None` when it is none of a device.
    pub(super) fn read(certificate: &CertificateDer<'_>) -> Option<Self> {
        Some(Self { device: pki::device_of(certificate).ok()?, key_sha256: pki::key_of(certificate).ok()? })
    }
}

/// A baseline or a program file that was given to the device whose certificate is shown, by the SHA-256 of the whole, in
/// hexadecimal. `Range` with one range of bytes is served, any other is ignored.
#[utoipa::path(get, path = "/files/{sha256}", tag = "devices", params(("sha256" = String, Path)), responses((status = 200, description = "The whole.", body = Vec<u8>, content_type = "application/octet-stream"), (status = 206, description = "The range that was asked for.", body = Vec<u8>, content_type = "application/octet-stream"), (status = 416, description = "It ends before that.")))]
pub(super) async fn download(
    State(shared): State<Arc<Shared>>,
    Extension(shown): Extension<Option<Shown>>,
    Words(sha256): Words<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let device = admitted(&shared, shown).await?;
    let file = || ApiError::not_found("file for this device");
    let sha256 = HEXLOWER_PERMISSIVE.decode(sha256.as_bytes()).ok().and_then(|hash| hash.try_into().ok());
    let sha256: [u8; 32] = sha256.ok_or_else(file)?;
    let owner = device.clone();
    let size = shared.store.read(move |c| store::file_size(c, &owner, sha256)).await?.ok_or_else(file)?;
    let asked = headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    let (status, range) = match asked.map_or(Asked::Whole, |text| Asked::read(text, size)) {
        Asked::Whole => (StatusCode::OK, 0..size),
        Asked::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Asked::Beyond => {
            let ends = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, ends).into_response());
        }
    };
    shared.counters.bump(Counter::FilesServed);
    let mut told: Vec<(HeaderName, String)> = vec![
        (header::CONTENT_TYPE, "application/octet-stream".into()),
        (header::ACCEPT_RANGES, "bytes".into()),
        (header::CONTENT_LENGTH, range.len().to_string()),
    ];
    if status == StatusCode::PARTIAL_CONTENT {
        told.push((header::CONTENT_RANGE, format!("bytes {}-{}/{size}", range.start, range.end - 1)));
    }
    let mut response = (status, pieces(shared, device, sha256, range)).into_response();
    for (name, value) in told {
        response.headers_mut().insert(name, value.parse().expect("numbers and words are a header's value"));
    }
    Ok(response)
}

/// The device whose connection it is, if it may be here.
async fn admitted(shared: &Shared, shown: Option<Shown>) -> Result<DeviceId, ApiError> {
    let hint = "use the certificate that this device enrolled with, or enrol it again";
    let Some(Shown { device, key_sha256 }) = shown else {
        let public = "a device's certificate is needed";
        return Err(ApiError::new(StatusCode::UNAUTHORIZED, "no_certificate", public, hint));
    };
    let owner = device.clone();
    match shared.store.read(move |c| store::known(c, &owner, key_sha256)).await? {
        Known::Yes => Ok(device),
        Known::No | Known::Replaced | Known::Revoked => {
            let public = "this device is not welcome any more";
            Err(ApiError::new(StatusCode::FORBIDDEN, "not_enrolled", public, hint))
        }
    }
}

/// Bytes of a file, read as they are sent. One that is removed meanwhile ends the connection.
fn pieces(shared: Arc<Shared>, device: DeviceId, sha256: [u8; 32], range: Range<u32>) -> Body {
    let read = move |range: Range<u32>| {
        let (shared, owner) = (Arc::clone(&shared), device.clone());
        async move {
            if range.is_empty() {
                return Ok(None);
            }
            let (offset, len) = (range.start, PIECE.min(range.end - range.start));
            let piece = shared.store.read(move |c| store::chunk(c, &owner, sha256, offset, len)).await;
            let piece = piece.map_err(io::Error::other)?.filter(|piece| !piece.is_empty());
            let piece = piece.ok_or_else(|| io::Error::other("the file is gone"))?;
            let next = offset + piece.len() as u32;
            Ok::<_, io::Error>(Some((Bytes::from(piece), next..range.end)))
        }
    };
    Body::from_stream(stream::try_unfold(range, read))
}

/// What a `Range` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    /// Everything, also for what this server does not understand.
    Whole,
    /// This much of it.
    Part(Range<u32>),
    /// Nothing that there is.
    Beyond,
}

impl Asked {
    /// Of a file of `size` bytes.
    fn read(text: &str, size: u32) -> Self {
        let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
            return Self::Whole;
        };
        let number = |text: &str| match text {
            "" => Some(None),
            text if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(Some(text.parse().unwrap_or(u32::MAX)))
            }
            _ => None,
        };
        let range = match (number(first), number(last)) {
            (Some(Some(first)), Some(None)) => first..size,
            (Some(Some(first)), Some(Some(last))) if first <= last => first..last.saturating_add(1).min(size),
            (Some(None), Some(Some(count))) => size.saturating_sub(count)..size,
            _ => return Self::Whole,
        };
        if range.is_empty() { Self::Beyond } else { Self::Part(range) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, wanted: Asked) {
        assert_eq!(Asked::read(text, 100), wanted, "{text}");
    }

    #[test]
    fn a_range_is_read_as_the_standard_has_it() {
        check("bytes=0-", Asked::Part(0..100));
        check("bytes=10-19", Asked::Part(10..20));
        check("bytes=90-500", Asked::Part(90..100));
        check("bytes=90-99999999999999", Asked::Part(90..100));
        check("bytes=-30", Asked::Part(70..100));
        check("bytes=-300", Asked::Part(0..100));
        check("bytes=100-", Asked::Beyond);
        check("bytes=100-200", Asked::Beyond);
        check("bytes=-0", Asked::Beyond);
    }

    #[test]
    fn what_is_not_one_range_of_bytes_is_ignored() {
        for text in ["bytes=20-10", "bytes=-", "bytes=1-2,5-6", "lines=1-2", "bytes=+1-2", "bytes", ""] {
            check(text, Asked::Whole);
        }
    }
}
