//! Connection strings as libpq reads them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub
)]

mod common;

use atlas_engine::ports::Store;
use atlas_engine::{Error, ErrorKind};
use atlas_store_postgres::{Config, PostgresStore, SslMode};
use secrecy::SecretString;

use common::Database;

fn bare(text: &str) -> Config {
    Config::new(SecretString::from(text))
}

/// Host, whether it is local, and the mode that holds there.
fn endpoints(config: &Config) -> Vec<(String, bool, SslMode)> {
    let endpoints = config.endpoints().unwrap();
    endpoints
        .into_iter()
        .map(|e| (e.host, e.is_local, e.ssl_mode))
        .collect()
}

#[test]
fn without_a_mode_tcp_is_verified_in_full_and_a_socket_is_plain() {
    use SslMode::{Disable, Require, VerifyFull};
    type Expected = &'static [(&'static str, bool, SslMode)];
    let cases: &[(&str, Expected)] = &[
        (
            "postgres://db.example.org/a",
            &[("db.example.org", false, VerifyFull)],
        ),
        (
            "postgresql://u@localhost:5433/a",
            &[("localhost", true, VerifyFull)],
        ),
        (
            "postgres://u:p%40ss@127.0.0.8/a",
            &[("127.0.0.8", true, VerifyFull)],
        ),
        (
            "postgres://u@[::1]:5433,h2/a",
            &[("::1", true, VerifyFull), ("h2", false, VerifyFull)],
        ),
        (
            "postgres:///a?host=/run/postgresql",
            &[("/run/postgresql", true, Disable)],
        ),
        (
            "postgres://%2Ftmp/a?sslmode=require",
            &[("/tmp", true, Disable)],
        ),
        (
            "host=/tmp,db user=u",
            &[("/tmp", true, Disable), ("db", false, VerifyFull)],
        ),
        (
            "host=db dbname='it\\'s' sslmode=require",
            &[("db", false, Require)],
        ),
        ("host=db hostaddr=127.0.0.1", &[("db", true, VerifyFull)]),
        (
            "host=localhost hostaddr=10.0.0.1",
            &[("localhost", false, VerifyFull)],
        ),
        (
            "hostaddr=10.0.0.1 sslmode=require",
            &[("10.0.0.1", false, Require)],
        ),
        (
            "postgres://u:a?b=c@db/x?sslmode=require",
            &[("db", false, Require)],
        ),
        ("postgres://db/x?ssl=true", &[("db", false, Require)]),
    ];
    for (text, expected) in cases {
        let expected: Vec<_> = expected
            .iter()
            .map(|(host, local, mode)| ((*host).to_owned(), *local, *mode))
            .collect();
        assert_eq!(endpoints(&bare(text)), expected, "{text}");
    }
}

#[test]
fn every_parameter_of_libpq_is_taken_or_refused_by_name() {
    let taken = [
        "user=u",
        "password=p",
        "password=''",
        "dbname=d",
        "port=5433",
        "connect_timeout=10",
        "connect_timeout=0",
        "client_encoding=UTF8",
        "client_encoding=auto",
        "options='-c a.b=1'",
        "application_name=x",
        "fallback_application_name=x",
        "keepalives=0",
        "keepalives_idle=5",
        "keepalives_interval=5",
        "keepalives_count=5",
        "tcp_user_timeout=1000",
        "sslmode=disable",
        "sslmode=allow",
        "sslmode=prefer",
        "sslmode=require",
        "sslcompression=0",
        "sslsni=0",
        "sslnegotiation=postgres",
        "ssl_min_protocol_version=TLSv1.2",
        "ssl_min_protocol_version=TLSv1.3",
        "ssl_max_protocol_version=TLSv1.3",
        "gssencmode=disable",
        "gssencmode=prefer",
        "target_session_attrs=any",
        "target_session_attrs=read-write",
        "target_session_attrs=primary",
        "load_balance_hosts=random",
        "load_balance_hosts=disable",
        "channel_binding=prefer",
        "channel_binding=disable",
        "channel_binding=require",
    ];
    for parameter in taken {
        let config = bare(&format!("host=h {parameter}"));
        assert!(config.endpoints().is_ok(), "{parameter}");
    }
    let refused = [
        "passfile=/x",
        "require_auth=md5",
        "client_encoding=LATIN1",
        "replication=database",
        "gssencmode=require",
        "sslmode=verify_full",
        "sslnegotiation=direct",
        "sslcompression=1",
        "sslpassword=hunter2",
        "sslcertmode=require",
        "sslcrl=/x",
        "sslcrldir=/x",
        "requirepeer=postgres",
        "ssl_min_protocol_version=SSLv3",
        "ssl_max_protocol_version=TLSv1.2",
        "krbsrvname=x",
        "gsslib=x",
        "gssdelegation=1",
        "service=x",
        "target_session_attrs=standby",
        "target_session_attrs=read-only",
        "target_session_attrs=prefer-standby",
        "load_balance_hosts=yes",
        "channel_binding=on",
        "hostaddr=db",
        "port=0",
        "port=x",
        "port=65536",
        "keepalives=on",
        "connect_timeout=-1",
        "sslcert=/x",
        "sslkeylogfile=/x",
        "min_protocol_version=3.2",
        "requiressl=1",
    ];
    for parameter in refused {
        let error = bare(&format!("host=h password=hunter2 {parameter}"))
            .endpoints()
            .unwrap_err();
        let name = parameter.split('=').next().unwrap();
        let error = Error::from(error);
        assert_eq!(error.kind(), ErrorKind::Usage, "{parameter}");
        assert!(
            error.chain().contains(&format!("`{name}`")),
            "{parameter}: {}",
            error.chain()
        );
        assert!(
            error.help().is_some() && !error.chain().contains("hunter2"),
            "{}",
            error.chain()
        );
        let url = parameter.replacen(' ', "%20", 9);
        let error = bare(&format!("postgres://u:hunter2@h/d?{url}"))
            .endpoints()
            .unwrap_err();
        assert!(
            error.to_string().contains(&format!("`{name}`")),
            "{parameter}: {error}"
        );
    }
}

#[test]
fn what_is_no_connection_string_is_refused_without_a_word_of_it() {
    for wrong in [
        "",
        "hunter2",
        "hunter2=hunter2 host=h",
        "host=h password='hunter2",
        "postgres://u:hunter2@",
        "postgres:///hunter2",
        "postgres://u:hunter2@[::1/d",
        "postgres://u:hunter2@[::1]x/d",
        "postgres://u:hunter2@h:99999/d",
        "postgres://u:hunter2%@h/d",
        "postgres://u:hunter2%zz@h/d",
        "postgres://u:hunter2@h/d?hunter2",
        "postgres://u:hunter2@h/d?hunter2=1",
        "host=a,b hostaddr=::1 password=hunter2",
        "host=a,b,c port=1,2 password=hunter2",
        "host=@abstract password=hunter2",
        "host=a,,b password=hunter2",
        "hostaddr=10.0.0.1 password=hunter2",
    ] {
        let error = Error::from(bare(wrong).endpoints().unwrap_err());
        assert_eq!(error.kind(), ErrorKind::Usage, "{wrong}");
        assert!(
            error.help().is_some() && !format!("{} {error:?}", error.chain()).contains("hunter2"),
            "{}",
            error.chain()
        );
    }
}

#[test]
fn the_file_and_the_string_may_not_contradict() {
    let with = |text: &str, mode: Option<SslMode>, root: Option<&str>| Config {
        ssl_mode: mode,
        ssl_root_cert: root.map(Into::into),
        ..bare(text)
    };
    let string = "host=h sslmode=verify-ca sslrootcert=/r.pem";
    let same = with(string, Some(SslMode::VerifyCa), Some("/r.pem"));
    assert_eq!(endpoints(&same)[0].2, SslMode::VerifyCa);
    for (config, names) in [
        (
            with(string, Some(SslMode::Require), None),
            ["ssl_mode", "sslmode"],
        ),
        (
            with(string, Some(SslMode::VerifyFull), None),
            ["ssl_mode", "sslmode"],
        ),
        (
            with(string, None, Some("/other.pem")),
            ["ssl_root_cert", "sslrootcert"],
        ),
        (
            with("host=h sslrootcert=system", Some(SslMode::Require), None),
            ["sslrootcert", "sslmode"],
        ),
        (
            with("host=h sslmode=verify-ca", None, Some("system")),
            ["sslrootcert", "sslmode"],
        ),
    ] {
        let error = Error::from(config.endpoints().unwrap_err());
        assert_eq!(error.kind(), ErrorKind::Usage);
        for name in names {
            assert!(error.chain().contains(name), "{}", error.chain());
        }
    }
    assert_eq!(
        endpoints(&with("host=h sslrootcert=system", None, None))[0].2,
        SslMode::VerifyFull
    );
}

#[test]
fn every_secret_is_found_in_every_form() {
    for text in [
        "postgresql://u:s3c%20ret@h/d",
        "postgresql://u:s3c ret@h1:5432,h2:5432/d",
        "postgresql://u:s3c%20ret@[::1],h2/d",
        "postgresql://h/d?password=s3c%20ret",
        "postgresql://h/d?user=u&%70assword=s3c%20ret",
        "postgresql://h/d?sslpassword=s3c%20ret",
        "password='s3c ret'",
        "host=h password = 's3c ret' user=u",
        "host=h password=s3c\\ ret",
        "host=h\tsslpassword='s3c ret'",
        "user='password=no' password='s3c ret'",
        "\0password='s3c ret'",
    ] {
        assert_eq!(bare(text).secrets(), ["s3c ret"], "{text}");
    }
    for text in [
        "postgresql://u@h/d?application_name=password",
        "postgresql://password@h/password",
        "postgresql://u:@h/d",
        "host=h password=''",
        "user=password host=h options='password=no'",
        "passfile=/etc/atlas/pgpass",
        "no connection string",
    ] {
        assert!(bare(text).secrets().is_empty(), "{text}");
    }
}

/// A socket of Unix in front of a server, and the folder that it lies in.
fn socket(port: u16) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let listener = tokio::net::UnixListener::bind(folder.path().join(".s.PGSQL.5432")).unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    folder
}

#[tokio::test]
async fn a_socket_needs_no_mode_and_ignores_one() {
    let database = Database::new().await;
    let folder = socket(database.cluster.port());
    let place = folder.path().to_str().unwrap();
    let server: tokio_postgres::Config = database.url.parse().unwrap();
    let (user, password) = (
        server.get_user().unwrap(),
        String::from_utf8_lossy(server.get_password().unwrap()),
    );
    for text in [
        format!(
            "host={place} user={user} password={password} dbname={}",
            database.name
        ),
        format!(
            "postgres://{user}:{password}@{}/{}",
            place.replace('/', "%2F"),
            database.name
        ),
        format!(
            "postgres://{user}:{password}@/{}?host={place}&sslmode=verify-full",
            database.name
        ),
    ] {
        let store = PostgresStore::new(&bare(&text)).unwrap();
        store.prepare().await.unwrap();
    }
}

#[tokio::test]
async fn the_next_host_is_tried_unless_the_first_one_refused_us() {
    let database = Database::new().await;
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let dead = closed.local_addr().unwrap().port();
    let alive = database.cluster.port();
    let server: tokio_postgres::Config = database.url.parse().unwrap();
    let (user, password) = (
        server.get_user().unwrap(),
        String::from_utf8_lossy(server.get_password().unwrap()),
    );
    let url = |password: &str, ports: [u16; 2]| {
        let [one, two] = ports;
        bare(&format!(
            "postgres://{user}:{password}@127.0.0.1:{one},localhost:{two}/{}?sslmode=disable",
            database.name
        ))
    };
    for config in [url(&password, [dead, alive]), url(&password, [alive, dead])] {
        PostgresStore::new(&config)
            .unwrap()
            .prepare()
            .await
            .unwrap();
    }
    let error = PostgresStore::new(&url("wrong", [alive, dead]))
        .unwrap()
        .prepare()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreDenied);
    let error = PostgresStore::new(&url(&password, [dead, dead]))
        .unwrap()
        .prepare()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnreachable);
}

#[tokio::test]
async fn application_name_and_options_reach_the_server() {
    let database = Database::new().await;
    for (parameters, name) in [
        ("", "atlas"),
        ("&application_name=copy", "copy"),
        ("&fallback_application_name=other", "other"),
    ] {
        let text = format!(
            "{}?sslmode=disable&options=-csearch_path%3Dpublic{parameters}",
            database.url
        );
        let store = PostgresStore::new(&bare(&text)).unwrap();
        store.prepare().await.unwrap();
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1";
        let row = database
            .client()
            .await
            .query_one(sql, &[&name])
            .await
            .unwrap();
        assert!(row.get::<_, i64>(0) > 0, "{name}");
    }
}
