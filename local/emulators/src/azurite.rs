use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use jiff::{SignedDuration, Timestamp};
use sha2::Sha256;
use tempfile::TempDir;
use url::form_urlencoded::Serializer;

use crate::authority::Authority;
use crate::process::Process;
use crate::tool::{self, run};
use crate::{Context, Error, Result};

const VERSION: &str = "3.35.0";
const READY: &str = " service is successfully listening at ";
const SERVICE_VERSION: &str = "2021-12-02";

/// The storage account of every Azurite.
pub const ACCOUNT: &str = "devstoreaccount1";

/// The key of that account, the same on all machines and in its documentation.
pub const KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A private storage account with queues and blobs, in memory.
pub struct Azurite {
    queues: String,
    blobs: String,
    client: reqwest::Client,
    // Ends before the folder is removed in which it runs.
    _process: Process,
    _folder: TempDir,
}

/// A message as [`Azurite::take`] found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// What the sender wrote, as it lies in the queue.
    pub text: String,
    /// How often it was received, this time included.
    pub dequeue_count: u32,
    /// When it is forgotten, as an HTTP date.
    pub expires: String,
}

impl Azurite {
    /// Starts one that speaks http and takes SAS and account key. Blocks: a second, or half a minute when it has to be
    /// installed first.
    ///
    /// # Errors
    /// What is missing, or what it said before it ended.
    pub fn start() -> Result<Self> {
        Self::launch(None)
    }

    /// Starts one that speaks https and takes tokens too: any whose audience is `https://storage.azure.com` and that has
    /// not expired, signed or not.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with_tls(authority: &Authority) -> Result<Self> {
        Self::launch(Some(authority))
    }

    fn launch(authority: Option<&Authority>) -> Result<Self> {
        let action = "start Azurite";
        let tool = tool::folder(&format!("azurite-{VERSION}"), |folder| {
            let package = format!("azurite@{VERSION}");
            let arguments = ["install", "--no-audit", "--no-fund", "--prefix", "."];
            run("npm", &[&arguments[..], &[&package]].concat(), folder)
        })?;
        let folder = tempfile::tempdir().context(action)?;
        let mut command = Command::new(tool.join("node_modules/.bin/azurite"));
        command.current_dir(folder.path());
        for service in ["blob", "queue", "table"] {
            command.args([&format!("--{service}Host"), "127.0.0.1"]);
            command.args([&format!("--{service}Port"), "0"]);
        }
        command.args(["--inMemoryPersistence", "--skipApiVersionCheck"]);
        command.args(["--disableTelemetry", "--silent"]);
        let mut builder = reqwest::Client::builder().no_proxy();
        if let Some(authority) = authority {
            let signed = authority.sign("127.0.0.1")?;
            let (certificate, key) = (
                folder.path().join("cert.pem"),
                folder.path().join("key.pem"),
            );
            std::fs::write(&certificate, signed.certificate.pem()).context(action)?;
            std::fs::write(&key, signed.key.serialize_pem()).context(action)?;
            command.args(["--oauth", "basic"]);
            command.arg("--cert").arg(&certificate);
            command.arg("--key").arg(&key);
            let root =
                reqwest::Certificate::from_pem(authority.pem().as_bytes()).context(action)?;
            builder = builder.tls_certs_only([root]);
        }
        let process = Process::start("Azurite", command)?;
        // It starts its services in this order.
        let blobs = process.address(&format!("Blob{READY}"))?;
        let queues = process.address(&format!("Queue{READY}"))?;
        process.address(&format!("Table{READY}"))?;
        Ok(Self {
            queues: format!("{queues}/{ACCOUNT}"),
            blobs: format!("{blobs}/{ACCOUNT}"),
            client: builder.build().context(action)?,
            _process: process,
            _folder: folder,
        })
    }

    /// `http://127.0.0.1:PORT/devstoreaccount1`: behind it a slash and the name of a queue.
    pub fn queues(&self) -> &str {
        &self.queues
    }

    /// The same for blobs: behind it a slash and the name of a container.
    pub fn blobs(&self) -> &str {
        &self.blobs
    }

    /// The connection string of the account, with its key.
    pub fn connection_string(&self) -> String {
        let (protocol, _) = self.queues.split_once(':').unwrap_or_default();
        format!(
            "DefaultEndpointsProtocol={protocol};AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={};QueueEndpoint={};",
            self.blobs, self.queues
        )
    }

    /// A query that allows everything on the whole account for an hour, to be put behind a `?`.
    ///
    /// # Errors
    /// A key that is none.
    pub fn sas(&self) -> Result<String> {
        let (services, types, rights, protocols) = ("bqt", "sco", "rwdlacup", "https,http");
        let until = Timestamp::now() + SignedDuration::from_hours(1);
        let until = until.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let text = format!(
            "{ACCOUNT}\n{rights}\n{services}\n{types}\n\n{until}\n\n{protocols}\n{SERVICE_VERSION}\n\n"
        );
        let key = STANDARD.decode(KEY).context("sign a SAS")?;
        let mut signer = Hmac::<Sha256>::new_from_slice(&key).context("sign a SAS")?;
        signer.update(text.as_bytes());
        let signature = STANDARD.encode(signer.finalize().into_bytes());
        Ok(Serializer::new(String::new())
            .append_pair("sv", SERVICE_VERSION)
            .append_pair("ss", services)
            .append_pair("srt", types)
            .append_pair("sp", rights)
            .append_pair("se", &until)
            .append_pair("spr", protocols)
            .append_pair("sig", &signature)
            .finish())
    }

    /// Makes a queue, if there is none of this name.
    ///
    /// # Errors
    /// What the emulator answered.
    pub async fn create_queue(&self, name: &str) -> Result<()> {
        let request = self
            .client
            .put(format!("{}/{name}?{}", self.queues, self.sas()?));
        self.call("create a queue", request).await.map(drop)
    }

    /// Takes up to 32 messages that are visible now out of a queue and deletes none; they stay hidden for half a minute.
    ///
    /// # Errors
    /// What the emulator answered.
    pub async fn take(&self, name: &str) -> Result<Vec<Taken>> {
        let query = format!("numofmessages=32&{}", self.sas()?);
        let request = self
            .client
            .get(format!("{}/{name}/messages?{query}", self.queues));
        let answer = self.call("take messages", request).await?;
        answer
            .split("<QueueMessage>")
            .skip(1)
            .map(|message| {
                let member = |name: &str| {
                    let (_, rest) = message.split_once(&format!("<{name}>"))?;
                    Some(rest.split_once(&format!("</{name}>"))?.0.to_owned())
                };
                Some(Taken {
                    text: member("MessageText")?,
                    dequeue_count: member("DequeueCount")?.parse().ok()?,
                    expires: member("ExpirationTime")?,
                })
            })
            .collect::<Option<_>>()
            .ok_or_else(|| Error::new("take messages", "the answer is not understood"))
    }

    async fn call(&self, action: &str, request: reqwest::RequestBuilder) -> Result<String> {
        let request = request.header("x-ms-version", SERVICE_VERSION);
        let answer = request.send().await.context(action)?;
        let answer = answer.error_for_status().context(action)?;
        answer.text().await.context(action)
    }
}
