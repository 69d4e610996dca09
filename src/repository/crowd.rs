//! Thousands of holders, read from a repofile and written to it.
//!
//! [`Holder`] is one flat JSON object whose keys depend on its kind. What serde derives for that
//! puts every value of every holder on the heap before it is looked at, and the way through
//! [`Value`], which keeps the keys we don't know, does so once more: with 10,000 holders that is
//! all the time a warm `--use` takes. So a repofile is read by [`read`] first, which takes the
//! holders straight from the text; it knows one spelling, ours, and what it cannot read is read
//! the long way. [`write`] does the same the other way round.

use std::borrow::Cow;
use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use super::holder::{Hold, Holder, Lease};
use crate::process::Identity;

/// The object in a repofile, and the holders that stand in its `sc`, which has an empty list
/// in their place. `None`: this must be read the long way.
pub fn read(bytes: &[u8]) -> Option<(Map<String, Value>, Vec<Holder>)> {
    let Whole { map, holders } = serde_json::from_slice(bytes).ok()?;
    Some((map, holders?))
}

/// `#[serde(serialize_with)]` of a list of holders.
pub fn write<S: Serializer>(holders: &[Holder], to: S) -> Result<S::Ok, S::Error> {
    let mut list = to.serialize_seq(Some(holders.len()))?;
    for holder in holders {
        match &holder.hold {
            Hold::Process(process) => list.serialize_element(&Process::of(holder, process))?,
            _ => list.serialize_element(holder)?,
        }
    }
    list.end()
}

struct Whole {
    map: Map<String, Value>,
    holders: Option<Vec<Holder>>,
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Whole, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Whole;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a repofile")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Whole, A::Error> {
                let (mut map, mut holders) = (Map::new(), None);
                while let Some(key) = access.next_key::<String>()? {
                    let value = match key.as_str() {
                        "sc" => {
                            let ours: Ours = access.next_value()?;
                            holders = ours.holders;
                            Value::Object(ours.map)
                        }
                        _ => access.next_value()?,
                    };
                    map.insert(key, value);
                }
                Ok(Whole { map, holders })
            }
        }
        from.deserialize_map(Keys)
    }
}

/// What stands under `sc`.
struct Ours {
    map: Map<String, Value>,
    holders: Option<Vec<Holder>>,
}

impl<'de> Deserialize<'de> for Ours {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Ours, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Ours;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("what sc writes")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Ours, A::Error> {
                let (mut map, mut holders) = (Map::new(), None);
                while let Some(key) = access.next_key::<String>()? {
                    let value = match key.as_str() {
                        "holders" => {
                            let list: Vec<One> = access.next_value()?;
                            holders = Some(list.into_iter().map(|One(holder)| holder).collect());
                            Value::Array(Vec::new())
                        }
                        _ => access.next_value()?,
                    };
                    map.insert(key, value);
                }
                Ok(Ours { map, holders })
            }
        }
        from.deserialize_map(Keys)
    }
}

struct One(Holder);

impl<'de> Deserialize<'de> for One {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<One, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Holder;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a holder")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Holder, A::Error> {
                // we write the kind first
                let kind: Option<(&str, &str)> = access.next_entry()?;
                let rest = MapAccessDeserializer::new(access);
                match kind {
                    Some(("kind", "process")) => Process::deserialize(rest).map(Holder::from),
                    Some(("kind", kind)) => {
                        let mut rest = Map::deserialize(rest)?;
                        rest.insert("kind".into(), kind.into());
                        Holder::deserialize(Value::Object(rest)).map_err(A::Error::custom)
                    }
                    _ => Err(A::Error::custom("not as sc writes it")),
                }
            }
        }
        from.deserialize_map(Keys).map(One)
    }
}

/// A holder that is a process, with the keys it has in the file, in their order.
#[derive(Serialize, Deserialize)]
struct Process<'a> {
    #[serde(skip_deserializing)]
    kind: &'static str,
    pid: i32,
    start_ticks: Option<u64>,
    boot_id: Option<Cow<'a, str>>,
    pid_ns: Option<u64>,
    time_ns: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host: Option<Cow<'a, str>>,
    #[serde(default)]
    id: Option<Cow<'a, str>>,
    since_unix_s: u64,
    #[serde(default)]
    lease: Option<Cow<'a, Lease>>,
    #[serde(default)]
    provisional: bool,
}

impl<'a> Process<'a> {
    fn of(holder: &'a Holder, process: &'a Identity) -> Process<'a> {
        Process {
            kind: "process",
            pid: process.pid,
            start_ticks: process.start_ticks,
            boot_id: process.boot_id.as_deref().map(Cow::from),
            pid_ns: process.pid_ns,
            time_ns: process.time_ns,
            host: process.host.as_deref().map(Cow::from),
            id: holder.id.as_deref().map(Cow::from),
            since_unix_s: holder.since_unix_s,
            lease: holder.lease.as_ref().map(Cow::Borrowed),
            provisional: holder.provisional,
        }
    }
}

impl From<Process<'_>> for Holder {
    fn from(read: Process) -> Holder {
        Holder {
            hold: Hold::Process(Identity {
                pid: read.pid,
                start_ticks: read.start_ticks,
                boot_id: read.boot_id.map(Cow::into_owned),
                pid_ns: read.pid_ns,
                time_ns: read.time_ns,
                host: read.host.map(Cow::into_owned),
            }),
            id: read.id.map(Cow::into_owned),
            since_unix_s: read.since_unix_s,
            lease: read.lease.map(Cow::into_owned),
            provisional: read.provisional,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Cgroup;

    fn holders() -> Vec<Holder> {
        let plain = Holder::process(std::process::id() as i32, None);
        let mut elsewhere = Holder::process(1, Some("a \"job\"\n".into()));
        if let Hold::Process(process) = &mut elsewhere.hold {
            process.host = Some("node".into());
            process.start_ticks = None;
        }
        elsewhere.lease = Some(Lease::new(60));
        elsewhere.provisional = true;
        let lock = Hold::Lock {
            file: "f".into(),
            dev: 1,
            ino: u64::MAX,
            boot_id: None,
            pid_ns: None,
            sc_pid: 4711,
            host: None,
        };
        let job = Hold::Job {
            cgroup: Cgroup::default(),
            job_id: Some("7".into()),
        };
        let lock = Holder::new(lock, None, Some(1));
        vec![plain, elsewhere, lock, Holder::new(job, None, None)]
    }

    fn written(holders: &[Holder]) -> String {
        let mut json = Vec::new();
        write(holders, &mut serde_json::Serializer::new(&mut json)).unwrap();
        String::from_utf8(json).unwrap()
    }

    #[test]
    fn holders_are_written_as_they_are_one_by_one() {
        let holders = holders();
        assert_eq!(written(&holders), serde_json::to_string(&holders).unwrap());
    }

    #[test]
    fn what_was_written_is_read_and_nothing_else_is_lost() {
        let holders = holders();
        let json = format!(
            r#"{{"x":[1.50],"sc":{{"a":1,"holders":{},"b":{{"c":null}}}},"readers":[1]}}"#,
            written(&holders)
        );
        let (whole, read) = super::read(json.as_bytes()).expect("our own spelling");
        assert_eq!(read, holders);
        let rest = json.replace(&written(&holders), "[]");
        assert_eq!(
            serde_json::to_string(&whole).unwrap(),
            rest.replace("1.50", "1.5")
        );
    }

    #[test]
    fn another_spelling_is_read_the_long_way() {
        for json in [
            "",
            "[]",
            r#"{"readers":[1]}"#,
            r#"{"sc":null}"#,
            r#"{"sc":{"format":1}}"#,
            r#"{"sc":{"holders":[{"pid":1,"kind":"process"}]}}"#,
            r#"{"sc":{"holders":[{"kind":"other"}]}}"#,
            r#"{"sc":{"holders":[{}]}}"#,
            r#"{"sc":{"holders":[{"kind":"process","pid":1"#,
        ] {
            assert!(read(json.as_bytes()).is_none(), "{json}");
        }
    }
}
