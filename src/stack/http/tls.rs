//! Whom to trust: the authorities for https.
//!
//! `SSL_CERT_FILE` and `SSL_CERT_DIR` replace what the system trusts, as in OpenSSL. The
//! authorities of the grid, which no system ships, come on top of either. Where a minimal
//! container has none at all, Mozilla's list, compiled in, is better than no https.
//!
//! A directory of grid authorities holds a thousand files: all this is read for the first https
//! URL only. Old ones among them have flaws that a parser refuses; those are left out, because
//! one bad file must not take https away.

use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

use super::network::Authorities;

const GRID: &str = "/etc/grid-security/certificates";

/// # Errors
/// Which variable names something useless.
pub fn config(authorities: &Authorities) -> Result<Arc<ClientConfig>, String> {
    let (roots, _) = trusted(authorities)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Those to trust; and where they come from, with the number of certificates.
///
/// # Errors
/// As [`config`].
pub fn trusted(authorities: &Authorities) -> Result<(RootCertStore, Vec<(String, usize)>), String> {
    let mut roots = RootCertStore::empty();
    let mut sources = Vec::new();
    if authorities.file.is_some() || !authorities.directories.is_empty() {
        if let Some(file) = &authorities.file {
            let found = add(&mut roots, Some(file), None);
            sources.push((format!("`{}` (`SSL_CERT_FILE`)", file.display()), found));
        }
        for directory in &authorities.directories {
            let found = add(&mut roots, None, Some(directory));
            sources.push((format!("`{}` (`SSL_CERT_DIR`)", directory.display()), found));
        }
        if roots.is_empty() {
            let variable = match authorities.file {
                Some(_) => "SSL_CERT_FILE",
                None => "SSL_CERT_DIR",
            };
            return Err(format!(
                "no certificate can be read from what `{variable}` names"
            ));
        }
    } else {
        let system = rustls_native_certs::load_native_certs().certs;
        let (found, _) = roots.add_parsable_certificates(system);
        sources.push(("the system".into(), found));
    }
    match &authorities.grid {
        Some(grid) => {
            let found = add(&mut roots, None, Some(grid));
            if found == 0 {
                return Err("no certificate can be read from what `X509_CERT_DIR` names".into());
            }
            sources.push((format!("`{}` (`X509_CERT_DIR`)", grid.display()), found));
        }
        None if Path::new(GRID).is_dir() => {
            let found = add(&mut roots, None, Some(Path::new(GRID)));
            sources.push((format!("`{GRID}`"), found));
        }
        None => {}
    }
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        sources.push(("Mozilla's list in `sc` itself".into(), roots.len()));
    }
    Ok((roots, sources))
}

/// Adds what can be read; how many certificates that is.
fn add(roots: &mut RootCertStore, file: Option<&Path>, directory: Option<&Path>) -> usize {
    let found = rustls_native_certs::load_certs_from_paths(file, directory);
    roots.add_parsable_certificates(found.certs).0
}

/// What is wrong with the server's certificate, for people, and which variable would change it.
pub fn explain(error: &rustls::Error, host: &str) -> String {
    use rustls::CertificateError as Certificate;
    let remedy = "`SSL_CERT_FILE` or `X509_CERT_DIR` can name more authorities";
    match error {
        rustls::Error::InvalidCertificate(problem) => match problem {
            Certificate::UnknownIssuer => {
                format!("the certificate of `{host}` comes from an unknown authority; {remedy}")
            }
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => {
                format!("the certificate of `{host}` is for another name")
            }
            Certificate::Expired | Certificate::ExpiredContext { .. } => {
                format!("the certificate of `{host}` has expired")
            }
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => {
                format!("the certificate of `{host}` is not valid yet; is the clock right?")
            }
            problem => format!("the certificate of `{host}` is no good ({problem}); {remedy}"),
        },
        rustls::Error::InvalidMessage(_) => format!("`{host}` does not speak TLS"),
        error => format!("no TLS connection to `{host}`: {error}"),
    }
}
