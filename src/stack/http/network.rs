//! Which proxy, and which certificate authorities: what the environment says.
//!
//! The rules are curl's and urllib's, where they agree: the proxy goes by the URL's scheme and
//! `all_proxy` is what is left; `no_proxy` is a list of host suffixes. `HTTP_PROXY` in capitals is
//! not read: a CGI program has the request header `Proxy:` under that name, for anybody to set.
//! A proxy URL is understood only when it is needed, so that a job with a useless `https_proxy`
//! may still fetch over http.

use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use super::url::{Url, split_scheme};

/// Proxies and certificate authorities.
#[derive(Clone)]
pub struct Network {
    http_proxy: Option<Named>,
    https_proxy: Option<Named>,
    all_proxy: Option<Named>,
    no_proxy: Option<Named>,
    /// `HTTP_PROXY` in capitals is set, and not read.
    is_misspelled: bool,
    pub(super) authorities: Authorities,
    /// The first pause before another attempt.
    pub(super) backoff: Duration,
}

/// Where the authorities are that a server's certificate may come from.
#[derive(Debug, Clone, Default)]
pub struct Authorities {
    pub file: Option<PathBuf>,
    /// A colon-separated list, as OpenSSL reads it.
    pub directories: Vec<PathBuf>,
    /// `X509_CERT_DIR`
    pub grid: Option<PathBuf>,
}

/// A value, and the variable it came from: the value may hold a password and is never shown.
#[derive(Clone)]
struct Named {
    variable: &'static str,
    value: OsString,
}

impl Named {
    fn proxy(&self) -> Result<Proxy, String> {
        let variable = self.variable;
        Proxy::parse(self.value.as_bytes())
            .map_err(|problem| format!("the proxy in `{variable}` cannot be used: {problem}"))
    }
}

/// How to reach a proxy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proxy(pub Url);

impl Network {
    /// Reads the environment through `var`; an empty variable is an unset one.
    pub fn from_env(var: &dyn Fn(&str) -> Option<OsString>) -> Network {
        let first = |names: &[&'static str]| {
            names.iter().find_map(|&variable| {
                let value = var(variable).filter(|value| !value.is_empty())?;
                Some(Named { variable, value })
            })
        };
        let path = |name| first(&[name]).map(|named| PathBuf::from(named.value));
        Network {
            http_proxy: first(&["http_proxy"]),
            https_proxy: first(&["https_proxy", "HTTPS_PROXY"]),
            all_proxy: first(&["all_proxy", "ALL_PROXY"]),
            no_proxy: first(&["no_proxy", "NO_PROXY"]),
            is_misspelled: first(&["HTTP_PROXY"]).is_some(),
            authorities: Authorities {
                file: path("SSL_CERT_FILE"),
                directories: first(&["SSL_CERT_DIR"])
                    .map(|named| std::env::split_paths(&named.value).collect::<Vec<_>>())
                    .unwrap_or_default()
                    .into_iter()
                    .filter(|path| !path.as_os_str().is_empty())
                    .collect(),
                grid: path("X509_CERT_DIR"),
            },
            backoff: backoff(var),
        }
    }

    /// The proxy for `url`; `None` = go there directly.
    ///
    /// # Errors
    /// The variable it comes from, and what is wrong with its value.
    pub fn proxy(&self, url: &Url) -> Result<Option<Proxy>, String> {
        match self.chosen(url.is_secure()) {
            Some(named) if !self.is_direct(url) => named.proxy().map(Some),
            _ => Ok(None),
        }
    }

    /// By the scheme of the URL.
    fn chosen(&self, is_secure: bool) -> Option<&Named> {
        let own = match is_secure {
            true => &self.https_proxy,
            false => &self.http_proxy,
        };
        own.as_ref().or(self.all_proxy.as_ref())
    }

    /// The proxy for a scheme, without a password, and the variable it comes from.
    ///
    /// # Errors
    /// As [`Network::proxy`].
    pub fn shown(&self, is_secure: bool) -> Result<Option<(String, &'static str)>, String> {
        let named = self.chosen(is_secure);
        let shown = named.map(|named| Ok((named.proxy()?.0.origin(), named.variable)));
        shown.transpose()
    }

    /// What is reached without a proxy, and the variable that says so.
    pub fn exceptions(&self) -> Option<(String, &'static str)> {
        let named = self.no_proxy.as_ref()?;
        Some((named.value.to_string_lossy().into_owned(), named.variable))
    }

    /// Where the authorities for https come from, and how many certificates each has.
    ///
    /// # Errors
    /// Which variable names something useless.
    pub fn authorities(&self) -> Result<Vec<(String, usize)>, String> {
        super::tls::trusted(&self.authorities).map(|(_, sources)| sources)
    }

    /// Has somebody set `HTTP_PROXY`, and nothing that is read in its stead?
    pub fn is_misspelled(&self) -> bool {
        self.is_misspelled && self.chosen(false).is_none()
    }

    /// Does `no_proxy` cover this host?
    fn is_direct(&self, url: &Url) -> bool {
        let host = url.bare_host().trim_end_matches('.');
        let (exceptions, _) = self.exceptions().unwrap_or_default();
        exceptions
            .split([',', ' ', '\t', '\n'])
            .map(str::trim)
            .filter(|entry| !entry.is_empty())
            .any(|entry| covers(entry, host, url.port()))
    }
}

/// Tests of the whole program retry without waiting: `SC_BACKOFF_MS`, in debug builds.
fn backoff(var: &dyn Fn(&str) -> Option<OsString>) -> Duration {
    let asked = cfg!(debug_assertions)
        .then(|| var("SC_BACKOFF_MS")?.to_str()?.parse().ok())
        .flatten();
    asked.map_or(Duration::from_secs(1), Duration::from_millis)
}

/// Passwords in proxy URLs are nobody's business.
impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network")
            .field("no_proxy", &self.exceptions())
            .field("authorities", &self.authorities)
            .finish_non_exhaustive()
    }
}

impl Default for Network {
    fn default() -> Self {
        Network::from_env(&|_| None)
    }
}

impl Proxy {
    fn parse(text: &[u8]) -> Result<Proxy, String> {
        let text = text.trim_ascii();
        let has_scheme = text.windows(3).any(|window| window == b"://");
        if let Some((scheme, _)) = split_scheme(text).filter(|_| has_scheme) {
            let scheme = scheme.to_ascii_lowercase();
            if scheme.starts_with(b"socks") {
                return Err(
                    "it is a SOCKS proxy, and only http and https proxies are spoken to".into(),
                );
            }
            Url::parse(text).map(Proxy)
        } else {
            Url::parse(&[b"http://", text].concat()).map(Proxy)
        }
    }
}

/// Does an entry of `no_proxy` cover this host and port?
fn covers(entry: &str, host: &str, port: u16) -> bool {
    if entry == "*" {
        return true;
    }
    let address: Option<IpAddr> = host.parse().ok();
    if let (Some((net, bits)), Some(address)) = (entry.split_once('/'), address) {
        return match (net.parse(), bits.parse()) {
            (Ok(net), Ok(bits)) => is_in_net(address, net, bits),
            _ => false,
        };
    }
    let bracketed = entry
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'));
    let (name, wanted) = match bracketed {
        Some((name, after)) => (name, after.strip_prefix(':')),
        // an IPv6 address without brackets is all colons and no port
        None if entry.parse::<IpAddr>().is_ok() => (entry, None),
        None => match entry.split_once(':') {
            Some((name, wanted)) => (name, Some(wanted)),
            None => (entry, None),
        },
    };
    if wanted.is_some_and(|wanted| wanted.parse() != Ok(port)) {
        return false;
    }
    match (address, name.parse::<IpAddr>()) {
        (Some(address), Ok(name)) => address == name,
        (Some(_), Err(_)) | (None, Ok(_)) => false,
        (None, Err(_)) => {
            let name = name.strip_prefix('*').unwrap_or(name);
            let name = name
                .trim_start_matches('.')
                .trim_end_matches('.')
                .to_ascii_lowercase();
            let rest = host.strip_suffix(&name);
            !name.is_empty() && rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        }
    }
}

fn is_in_net(address: IpAddr, net: IpAddr, bits: u32) -> bool {
    match (address, net) {
        (IpAddr::V4(address), IpAddr::V4(net)) if bits <= 32 => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            address.to_bits() & mask == net.to_bits() & mask
        }
        (IpAddr::V6(address), IpAddr::V6(net)) if bits <= 128 => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            address.to_bits() & mask == net.to_bits() & mask
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(variables: &[(&str, &str)]) -> Network {
        Network::from_env(&|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| value.into())
        })
    }

    fn chosen(variables: &[(&str, &str)], url: &str) -> Option<String> {
        let proxy = network(variables).proxy(&Url::parse(url.as_bytes()).unwrap());
        proxy.unwrap().map(|Proxy(url)| url.origin())
    }

    #[test]
    fn the_proxy_goes_by_the_scheme_of_the_url() {
        let all = [
            ("http_proxy", "http://plain:3128/"),
            ("https_proxy", "secure:3128"),
            ("all_proxy", "rest"),
        ];
        assert_eq!(
            chosen(&all, "http://h/").as_deref(),
            Some("http://plain:3128")
        );
        assert_eq!(
            chosen(&all, "https://h/").as_deref(),
            Some("http://secure:3128")
        );
        assert_eq!(
            chosen(&all[1..], "http://h/").as_deref(),
            Some("http://rest")
        );
        assert_eq!(chosen(&all[..1], "https://h/"), None);
        assert_eq!(
            chosen(&[("HTTPS_PROXY", "a"), ("ALL_PROXY", "b")], "https://h/").as_deref(),
            Some("http://a")
        );
        assert_eq!(
            chosen(&[("ALL_PROXY", "b")], "http://h/").as_deref(),
            Some("http://b")
        );
        assert_eq!(
            chosen(
                &[("http_proxy", ""), ("all_proxy", "https://b")],
                "http://h/"
            )
            .as_deref(),
            Some("https://b")
        );
    }

    #[test]
    fn http_proxy_in_capitals_is_not_read() {
        assert_eq!(chosen(&[("HTTP_PROXY", "evil:1")], "http://h/"), None);
    }

    #[test]
    fn no_proxy_covers_hosts_by_suffix() {
        let table = [
            ("cern.ch", "http://cern.ch/", true),
            ("cern.ch", "http://x.cern.ch/", true),
            ("cern.ch", "http://xcern.ch/", false),
            (".cern.ch", "http://x.cern.ch/", true),
            (".cern.ch", "http://cern.ch/", true),
            ("*.cern.ch", "http://x.cern.ch/", true),
            ("CERN.ch", "http://X.cern.CH./", true),
            ("foo, 127.0.0.1", "http://127.0.0.1/", true),
            ("foo 127.0.0.1", "http://127.0.0.1/", true),
            ("*", "http://x/", true),
            ("", "http://x/", false),
            (" , ,", "http://x/", false),
            ("x:8080", "http://x:8080/", true),
            ("x:8080", "http://x/", false),
            ("x:80", "http://x/", true),
            ("10.0.0.0/8", "http://10.1.2.3/", true),
            ("10.0.0.0/8", "http://11.1.2.3/", false),
            ("0.0.0.0/0", "http://11.1.2.3/", true),
            ("10.0.0.0/99", "http://10.1.2.3/", false),
            ("fd00::/8", "http://[fd12::1]/", true),
            ("::1", "http://[::1]/", true),
            ("[::1]:80", "http://[::1]/", true),
            ("[::1]:81", "http://[::1]/", false),
            ("0.0.1", "http://127.0.0.1/", false),
        ];
        for (no_proxy, url, is_direct) in table {
            let variables = [("http_proxy", "p:1"), ("no_proxy", no_proxy)];
            assert_eq!(
                chosen(&variables, url).is_none(),
                is_direct,
                "{no_proxy:?} {url}"
            );
        }
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_said_without_its_value() {
        for value in [
            "socks5://u:secret@h:1080",
            "secret://h",
            "http://secret@",
            "h:secret",
        ] {
            let network = network(&[("all_proxy", value)]);
            let error = network
                .proxy(&Url::parse(b"http://h/").unwrap())
                .unwrap_err();
            assert!(error.contains("`all_proxy`"), "{error}");
            assert!(!error.contains("secret"), "{error}");
            assert!(!format!("{network:?}").contains("secret"));
        }
    }
}
