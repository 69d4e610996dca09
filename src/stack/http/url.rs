//! An http or https URL: taken apart once, shown without its secrets, put together for the wire.
//!
//! What people type is not what RFC 3986 allows: blanks, umlauts, braces. Such bytes are
//! percent-encoded, everything else stays as it was typed, because a server may tell `%2F` from
//! `/`. User-info and query may be secrets and are never shown, not even by `Debug`.

use std::fmt;
use std::net::Ipv6Addr;

use percent_encoding::percent_decode_str;

#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    secure: bool,
    /// `user:password` as typed, percent-encoded.
    user_info: Option<String>,
    /// Lower case; an IPv6 address keeps its brackets.
    host: String,
    port: u16,
    /// Path and query, encoded; begins with `/`.
    target: String,
}

impl Url {
    /// # Errors
    /// What is wrong with it, for people, without its text.
    pub fn parse(text: &[u8]) -> Result<Url, String> {
        let (scheme, rest) = split_scheme(text).ok_or("it has no scheme")?;
        let secure = match scheme.to_ascii_lowercase().as_slice() {
            b"http" => false,
            b"https" => true,
            _ => return Err("it is neither http nor https".into()),
        };
        let rest = rest.strip_prefix(b"//").ok_or("it has no `//`")?;
        let end = rest
            .iter()
            .position(|byte| matches!(byte, b'/' | b'?' | b'#'));
        let (authority, target) = rest.split_at(end.unwrap_or(rest.len()));
        let authority = str::from_utf8(authority)
            .ok()
            .filter(|authority| authority.is_ascii())
            .ok_or("its host is not ASCII (write it in punycode, `xn--…`)")?;
        let (user_info, address) = match authority.rsplit_once('@') {
            Some((user_info, address)) => (Some(encode(user_info.as_bytes())), address),
            None => (None, authority),
        };
        let (host, port) = split_port(address)?;
        let port = match port {
            None | Some("") => default_port(secure),
            Some(port) => port
                .parse()
                .ok()
                .filter(|&number| number != 0 && !port.starts_with('+'))
                .ok_or("its port is not a number from 1 to 65535")?,
        };
        let target = encode(without_fragment(target));
        Ok(Url {
            secure,
            user_info: user_info.filter(|user_info| !user_info.is_empty()),
            host: host.to_ascii_lowercase(),
            port,
            target: if target.starts_with('/') {
                target
            } else {
                format!("/{target}")
            },
        })
    }

    /// Where `Location: reference` leads from here (RFC 3986 §5.2). User-info goes along within
    /// one origin only.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn join(&self, reference: &[u8]) -> Result<Url, String> {
        let reference = without_fragment(reference.trim_ascii());
        let scheme = if self.secure { "https" } else { "http" };
        let mut url = if split_scheme(reference).is_some() {
            Url::parse(reference)?
        } else if reference.starts_with(b"//") {
            Url::parse(&[scheme.as_bytes(), b":", reference].concat())?
        } else {
            let reference = encode(reference);
            let path = self.path();
            let target = if reference.is_empty() {
                self.target.clone()
            } else if reference.starts_with('?') {
                format!("{path}{reference}")
            } else if reference.starts_with('/') {
                reference
            } else {
                let folder = path.rfind('/').map_or("/", |slash| &path[..=slash]);
                format!("{folder}{reference}")
            };
            Url {
                target: without_dots(&target),
                ..self.clone()
            }
        };
        if url.user_info.is_none() && url.is_same_origin(self) {
            url.user_info.clone_from(&self.user_info);
        }
        Ok(url)
    }

    fn is_same_origin(&self, other: &Url) -> bool {
        (self.secure, &self.host, self.port) == (other.secure, &other.host, other.port)
    }

    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// As in a URL: lower case, an IPv6 address in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// As resolvers and certificates know it: no brackets.
    pub fn bare_host(&self) -> &str {
        self.host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(&self.host)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The path, encoded; begins with `/`.
    pub fn path(&self) -> &str {
        self.target
            .split_once('?')
            .map_or(&self.target, |(path, _)| path)
    }

    /// `scheme://host[:port]`
    pub fn origin(&self) -> String {
        let scheme = if self.secure { "https" } else { "http" };
        if self.port == default_port(self.secure) {
            format!("{scheme}://{}", self.host)
        } else {
            format!("{scheme}://{}:{}", self.host, self.port)
        }
    }

    /// What is asked of the server: no user-info, no fragment.
    pub fn request(&self) -> String {
        self.origin() + &self.target
    }

    /// The whole of it, secrets and all, in one spelling for each meaning.
    pub fn identity(&self) -> String {
        match &self.user_info {
            Some(user_info) => {
                let origin = self.origin();
                let (scheme, host) = origin.split_once("//").unwrap_or(("", &origin));
                format!("{scheme}//{user_info}@{host}{}", self.target)
            }
            None => self.request(),
        }
    }

    /// The value of `Authorization` that the user-info amounts to (RFC 7617).
    pub fn authorization(&self) -> Option<String> {
        let user_info = self.user_info.as_deref()?;
        let mut plain: Vec<u8> = percent_decode_str(user_info).collect();
        if !user_info.contains(':') {
            plain.push(b':');
        }
        Some(format!("Basic {}", base64(&plain)))
    }
}

/// Without user-info, query and fragment.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin(), self.path())
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `scheme` and what follows its colon, if it begins like one (RFC 3986 §3.1).
pub fn split_scheme(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = text.iter().position(|&byte| byte == b':')?;
    let scheme = &text[..colon];
    let is_scheme = scheme.first()?.is_ascii_alphabetic()
        && scheme
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'));
    is_scheme.then(|| (scheme, &text[colon + 1..]))
}

fn split_port(address: &str) -> Result<(&str, Option<&str>), String> {
    if let Some(rest) = address.strip_prefix('[') {
        let (inside, after) = rest.split_once(']').ok_or("its address lacks a `]`")?;
        if inside.parse::<Ipv6Addr>().is_err() {
            return Err("its address in brackets is no IPv6 address".into());
        }
        let port = match after.strip_prefix(':') {
            None if !after.is_empty() => return Err("something follows its address".into()),
            port => port,
        };
        return Ok((&address[..inside.len() + 2], port));
    }
    let (host, port) = match address.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (address, None),
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    match host {
        "" => Err("it has no host".into()),
        host if host.bytes().all(is_name) => Ok((host, port)),
        _ => Err("its host has characters that no host name has".into()),
    }
}

fn default_port(secure: bool) -> u16 {
    if secure { 443 } else { 80 }
}

fn without_fragment(text: &[u8]) -> &[u8] {
    text.split(|&byte| byte == b'#').next().unwrap_or(text)
}

/// Encodes what may not stand in a URL, and a `%` that begins no escape.
fn encode(text: &[u8]) -> String {
    let mut encoded = String::with_capacity(text.len());
    for (n, &byte) in text.iter().enumerate() {
        let is_escape = || {
            let digits = text.get(n + 1..n + 3).unwrap_or_default();
            digits.len() == 2 && digits.iter().all(u8::is_ascii_hexdigit)
        };
        match byte {
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' => {
                encoded.push_str(&format!("%{byte:02X}"));
            }
            b'%' if !is_escape() => encoded.push_str("%25"),
            b'!'..=b'~' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// RFC 3986 §5.2.4, on path and query.
fn without_dots(target: &str) -> String {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let mut kept: Vec<&str> = Vec::new();
    let mut is_folder = false;
    for segment in path.split('/').skip(1) {
        is_folder = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    if is_folder {
        kept.push("");
    }
    let path = format!("/{}", kept.join("/"));
    match query {
        Some(query) => format!("{path}?{query}"),
        None => path,
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut word = [0; 4];
        word[1..=chunk.len()].copy_from_slice(chunk);
        let word = u32::from_be_bytes(word);
        for place in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= chunk.len() {
                digit.into()
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_url_is_shown_without_user_info_query_and_fragment() {
        let url = url("HTTPS://me:secret@Host.Example:443/a%20b/c.tar?token=secret#there");
        assert_eq!(url.to_string(), "https://host.example/a%20b/c.tar");
        assert_eq!(format!("{url:?}"), "https://host.example/a%20b/c.tar");
        assert_eq!(
            url.request(),
            "https://host.example/a%20b/c.tar?token=secret"
        );
        assert_eq!(
            url.identity(),
            "https://me:secret@host.example/a%20b/c.tar?token=secret"
        );
    }

    #[test]
    fn what_may_not_stand_in_a_url_is_encoded_and_escapes_stay() {
        let url = url("http://h/a b/ü{x}%2f%zz%?q=\"1\"");
        assert_eq!(
            url.request(),
            "http://h/a%20b/%C3%BC%7Bx%7D%2f%25zz%25?q=%221%22"
        );
        assert_eq!(
            Url::parse(b"http://h/\xff\n").unwrap().request(),
            "http://h/%FF%0A"
        );
    }

    #[test]
    fn user_info_is_basic_authorization() {
        let basic = |text| url(text).authorization();
        assert_eq!(basic("http://h/"), None);
        assert_eq!(
            basic("http://Aladdin:open%20sesame@h/").as_deref(),
            Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==")
        );
        assert_eq!(basic("http://a@h/").as_deref(), Some("Basic YTo="));
        assert_eq!(basic("http://ab:@h/").as_deref(), Some("Basic YWI6"));
    }

    #[test]
    fn addresses_and_ports_are_understood() {
        assert_eq!(url("http://[::1]:8080").request(), "http://[::1]:8080/");
        assert_eq!(url("http://[::1]/").bare_host(), "::1");
        assert_eq!(url("http://h:?x").request(), "http://h/?x");
        assert_eq!(
            url("http://u@v:p@h/").authorization(),
            url("http://u%40v:p@h/").authorization()
        );
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for text in [
            "",
            "http",
            "http:",
            "http:/x",
            "http://",
            "http:///x",
            "http://h:99999/",
            "http://h:x/",
            "http://[::1/",
            "http://[x]/",
            "http://[::1]x/",
            "http://h ost/",
            "http://ü/",
            "ftp://h/x",
            "http://h:+1/",
            "http://h:0/",
            "http://a:b:c/",
        ] {
            assert!(Url::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn references_are_resolved_as_rfc_3986_says() {
        let base = url("http://u:p@h/b/c/d?q");
        for (reference, result) in [
            ("g", "http://h/b/c/g"),
            ("./g/", "http://h/b/c/g/"),
            ("/g", "http://h/g"),
            ("?y", "http://h/b/c/d?y"),
            ("g?y/./x", "http://h/b/c/g?y/./x"),
            ("../../../g", "http://h/g"),
            ("..", "http://h/b/"),
            (".", "http://h/b/c/"),
            ("", "http://h/b/c/d?q"),
            ("#s", "http://h/b/c/d?q"),
            ("//other/x y", "http://other/x%20y"),
            ("https://h/x", "https://h/x"),
        ] {
            let joined = base.join(reference.as_bytes()).unwrap();
            assert_eq!(joined.request(), result, "{reference}");
            let kept = joined.authorization().is_some();
            assert_eq!(
                kept,
                result.starts_with("http://h/"),
                "user-info of {reference}"
            );
        }
        assert!(base.join(b"ftp://h/x").is_err());
        assert!(base.join(b"file:///etc/passwd").is_err());
    }
}
