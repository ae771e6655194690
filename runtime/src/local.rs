//! What only this host may ask the admin server: it names Services and who holds which port,
//! and the admin port can be reached from the network. `kubectl exec` and `kubectl
//! port-forward` come from this host too.

use std::net::{IpAddr, SocketAddr};

use axum::{
    Router,
    extract::Request,
    http::{StatusCode, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
};

/// Whether a client is on this host, or in this Pod.
#[must_use]
pub(crate) fn is_local(peer: SocketAddr) -> bool {
    peer.ip().to_canonical().is_loopback()
}

/// What other hosts are answered where this host may get more.
pub(crate) async fn elsewhere() -> Response {
    let text = "only this host is answered more than /healthz, /readyz, /startz and /metrics: \
                use kubectl port-forward or kubectl exec\n";
    (StatusCode::NOT_FOUND, text).into_response()
}

/// The routes, for requests to an address or to localhost only. A page of another site that
/// a browser on this host shows can let its own name lead here, but not an address.
pub(crate) fn guarded(routes: Router) -> Router {
    routes.layer(from_fn(async |request: Request, next: Next| {
        let host = request.headers().get(header::HOST);
        let host = host.and_then(|host| host.to_str().ok());
        if host.is_none_or(is_no_name) {
            return next.run(request).await;
        }
        let text = "ask for localhost or for an address, not for a name\n";
        (StatusCode::MISDIRECTED_REQUEST, text).into_response()
    }))
}

/// Whether a `Host` (RFC 9110) is an address or localhost, with a port or without.
fn is_no_name(host: &str) -> bool {
    let without_port = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() && !name.ends_with(':') => name,
        _ => host,
    };
    let bare = without_port.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_others_are_no_addresses() {
        for host in [
            "localhost",
            "LOCALHOST:9808",
            "127.0.0.1",
            "127.0.0.1:9808",
            "[::1]",
            "[::1]:9808",
            "192.0.2.11:80",
        ] {
            assert!(is_no_name(host), "{host}");
        }
        for host in ["", "evil.example", "evil.example:9808", "localhost.evil:1"] {
            assert!(!is_no_name(host), "{host}");
        }
    }

    #[test]
    fn only_loopback_is_this_host() {
        for (peer, local) in [
            ("127.0.0.1:5", true),
            ("[::1]:5", true),
            ("[::ffff:127.0.0.1]:5", true),
            ("192.0.2.11:5", false),
            ("[2001:db8::1]:5", false),
        ] {
            assert_eq!(is_local(peer.parse().unwrap()), local, "{peer}");
        }
    }
}
