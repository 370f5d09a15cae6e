//! What a failed connection to the broker means for people, and what they can do.

use std::error::Error as StdError;
use std::io;

use rumqttc::{ConnectReturnCode, ConnectionError, StateError};
use rustls::{AlertDescription, CertificateError};

use crate::network::chain;

const NEW_CERTIFICATE: &str = "The pool's certificate may have expired, been revoked, or be of another control plane: use \
                               the token that the pool has now";

/// In one line, without a full stop.
pub(super) fn connection(error: &ConnectionError) -> String {
    if let ConnectionError::ConnectionRefused(code) = error {
        return refused(*code).to_owned();
    }
    if let Some(error) = tls_error(error) {
        return tls(error);
    }
    match error {
        ConnectionError::NetworkTimeout => {
            "the broker did not answer in time. Check that this host reaches it, through \
                                            HTTPS_PROXY if there is one"
                .to_owned()
        }
        ConnectionError::MqttState(StateError::ConnectionAborted) => "the broker closed the connection".to_owned(),
        ConnectionError::MqttState(StateError::AwaitPingResp) => "the broker is silent".to_owned(),
        ConnectionError::Proxy(error) => format!(
            "the proxy does not lead to the broker ({}). Check HTTPS_PROXY, and that the proxy permits CONNECT to the broker's port",
            chain(error)
        ),
        error => {
            let text = chain(error);
            let advice = if text.contains("lookup address") {
                ". The broker's name cannot be resolved: check the host's DNS, or set HTTPS_PROXY"
            } else if text.contains("refused") {
                ". Nothing listens there: check `broker` in the token"
            } else {
                ""
            };
            format!("{text}{advice}")
        }
    }
}

fn refused(code: ConnectReturnCode) -> &'static str {
    match code {
        ConnectReturnCode::Success => "the broker accepted the connection",
        ConnectReturnCode::RefusedProtocolVersion => "the broker does not speak MQTT 3.1.1",
        ConnectReturnCode::BadClientId => {
            "the broker does not permit this worker's identifier. Check the policy of the pool's certificate"
        }
        ConnectReturnCode::ServiceUnavailable => "the broker is unavailable at the moment",
        ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized => {
            "the broker knows the pool's certificate, but does not authorise it. Check the policy of the certificate, and that \
             the pool still exists"
        }
    }
}

/// Input and output errors hide their cause from `source`.
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(error);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn tls(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(reason) => {
            let advice = match reason {
                // The latter when another authority has the name of one that is trusted: one that was made anew.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    "It is of an authority that is not trusted: set ADDITIONAL_ROOT_CAS, or use the token that the pool has now"
                }
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    "It has expired, or this host's clock is wrong"
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    "It is not valid yet: this host's clock is wrong"
                }
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    "It is for another name: check `broker` in the token, and whether something on the way intercepts TLS"
                }
                _ => "Check what is on the way to the broker",
            };
            format!("the broker's certificate was refused ({reason}). {advice}")
        }
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError => {
                format!("the broker refused the pool's certificate ({alert:?}). {NEW_CERTIFICATE}")
            }
            alert => format!("the broker ended TLS ({alert:?}). {NEW_CERTIFICATE}"),
        },
        error => format!("TLS to the broker failed: {error}"),
    }
}
