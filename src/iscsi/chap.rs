//! CHAP, one-way and mutual (RFC 1994; RFC 7143 section 12.1.3), seen from the target.
//!
//! Knows the keys `CHAP_A`, `CHAP_I`, `CHAP_C`, `CHAP_N`, `CHAP_R` and their order, not the PDUs that carry them.
//! Challenges come from an injected source of randomness.

#![forbid(unsafe_code)]

use super::directory::ChapCredentials;
use super::text::{self, TextBuilder};
use std::fmt;
use subtle::ConstantTimeEq as _;

/// Bytes of a CHAP secret: RFC 7143 section 9.2.1 asks for 96 bits at least; 255 is what a text value holds.
pub const SECRET_BYTES_MIN: usize = 12;
/// The longest CHAP secret.
pub const SECRET_BYTES_MAX: usize = 255;
/// The longest challenge that the protocol allows.
pub const CHALLENGE_BYTES_MAX: usize = 1024;

/// Where unpredictable bytes come from.
pub trait Entropy {
    /// Fill all of `bytes`.
    ///
    /// # Errors
    /// When the source has failed; then `bytes` must not be used.
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyFailed>;
}

/// The source of randomness has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no random bytes could be had from the operating system")]
pub struct EntropyFailed;

/// A CHAP secret. It does not print.
#[derive(Clone)]
pub struct Secret(Box<[u8]>);

/// A secret of a length that is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the CHAP secret has {0} bytes; it must have {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX}")]
pub struct SecretLengthError(pub usize);

impl Secret {
    /// A secret of 12 to 255 bytes.
    ///
    /// # Errors
    /// Any other length.
    pub fn new(bytes: &[u8]) -> Result<Secret, SecretLengthError> {
        if !(SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&bytes.len()) {
            return Err(SecretLengthError(bytes.len()));
        }
        Ok(Secret(bytes.into()))
    }

    /// The bytes, for the one who must store them.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Secret) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A hash function of CHAP, by its number in the IANA registry "PPP Authentication Algorithms".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// MD5, the one that every implementation has.
    Md5,
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA3-256.
    Sha3_256,
}

/// Strong first.
pub const ALGORITHMS: [Algorithm; 4] = [Algorithm::Sha3_256, Algorithm::Sha256, Algorithm::Sha1, Algorithm::Md5];

/// The longest response of any algorithm.
const RESPONSE_BYTES_MAX: usize = 32;

/// A CHAP response value.
#[derive(Clone, Copy)]
struct Response {
    bytes: [u8; RESPONSE_BYTES_MAX],
    len: usize,
}

impl Response {
    fn new(digest: &[u8]) -> Response {
        assert!(digest.len() <= RESPONSE_BYTES_MAX);
        let mut bytes = [0; RESPONSE_BYTES_MAX];
        bytes[..digest.len()].copy_from_slice(digest);
        Response { bytes, len: digest.len() }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// An algorithm that this server does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a CHAP algorithm; there are sha3-256, sha256, sha1 and md5")]
pub struct AlgorithmError(pub String);

impl std::str::FromStr for Algorithm {
    type Err = AlgorithmError;

    fn from_str(text: &str) -> Result<Algorithm, AlgorithmError> {
        let named = ALGORITHMS.into_iter().find(|algorithm| algorithm.to_string().eq_ignore_ascii_case(text));
        named.ok_or_else(|| AlgorithmError(text.to_owned()))
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Algorithm::Md5 => "md5",
            Algorithm::Sha1 => "sha1",
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha3_256 => "sha3-256",
        })
    }
}

impl Algorithm {
    /// The registered number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Algorithm::Md5 => 5,
            Algorithm::Sha1 => 6,
            Algorithm::Sha256 => 7,
            Algorithm::Sha3_256 => 8,
        }
    }

    /// Bytes of a response.
    #[must_use]
    pub fn response_bytes(self) -> usize {
        match self {
            Algorithm::Md5 => 16,
            Algorithm::Sha1 => 20,
            Algorithm::Sha256 | Algorithm::Sha3_256 => 32,
        }
    }

    /// The response to a challenge: the hash of identifier, secret and challenge (RFC 1994 section 4.1).
    fn response(self, identifier: u8, secret: &Secret, challenge: &[u8]) -> Response {
        let parts: [&[u8]; 3] = [&[identifier], &secret.0, challenge];
        match self {
            Algorithm::Md5 => Response::new(&hash::<md5::Md5>(parts)),
            Algorithm::Sha1 => Response::new(&hash::<sha1::Sha1>(parts)),
            Algorithm::Sha256 => Response::new(&hash::<sha2::Sha256>(parts)),
            Algorithm::Sha3_256 => Response::new(&hash::<sha3::Sha3_256>(parts)),
        }
    }
}

fn hash<D: sha2::Digest>(parts: [&[u8]; 3]) -> sha2::digest::Output<D> {
    let mut digest = D::new();
    for part in parts {
        digest.update(part);
    }
    digest.finalize()
}

/// The CHAP keys of one complete request.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChapKeys<'a> {
    /// CHAP_A: the algorithms offered.
    pub algorithms: Option<&'a str>,
    /// CHAP_I: the identifier of the initiator's challenge.
    pub identifier: Option<&'a str>,
    /// CHAP_C: the initiator's challenge.
    pub challenge: Option<&'a str>,
    /// CHAP_N: the initiator's name.
    pub name: Option<&'a str>,
    /// CHAP_R: the response to our challenge.
    pub response: Option<&'a str>,
}

impl ChapKeys<'_> {
    /// Whether the request had none of them.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let ChapKeys { algorithms, identifier, challenge, name, response } = self;
        [algorithms, identifier, challenge, name, response].iter().all(|key| key.is_none())
    }
}

/// Why CHAP failed. The peer learns nothing of it but that it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChapFailure {
    /// Keys that do not belong to this step, or are missing.
    #[error("the CHAP keys are out of order")]
    Order,
    /// No algorithm in common.
    #[error("the initiator offers no CHAP algorithm that is allowed here")]
    NoAlgorithm,
    /// A value that cannot be decoded or has a wrong length.
    #[error("a CHAP value is malformed")]
    Malformed,
    /// The name or the response is wrong.
    #[error("the CHAP name or secret is wrong")]
    Wrong,
    /// The initiator sent our own challenge back.
    #[error("the initiator reflects the target's challenge")]
    Reflection,
    /// The initiator wants proof, and there is no secret to prove.
    #[error("the initiator asks for mutual CHAP, and the target has no mutual secret")]
    NoMutualSecret,
    /// No randomness.
    #[error(transparent)]
    Entropy(#[from] EntropyFailed),
}

/// How far CHAP has come.
#[derive(Clone, Debug)]
pub enum Chap {
    /// CHAP was chosen as the method; the initiator must offer algorithms.
    AwaitAlgorithms,
    /// The challenge was sent; the initiator must answer it.
    AwaitResponse(Challenge),
    /// The initiator has proven who it is.
    Done,
}

/// The challenge of the target.
#[derive(Clone, Debug)]
pub struct Challenge {
    algorithm: Algorithm,
    identifier: u8,
    bytes: [u8; RESPONSE_BYTES_MAX],
    len: usize,
}

impl Challenge {
    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Chap {
    /// Handle the keys of one complete request and write the answer's keys.
    ///
    /// # Errors
    /// Authentication has failed; the login ends.
    pub fn handle(
        &mut self,
        keys: &ChapKeys<'_>,
        credentials: &ChapCredentials,
        allowed: &[Algorithm],
        entropy: &mut dyn Entropy,
        answer: &mut TextBuilder,
    ) -> Result<(), ChapFailure> {
        match self {
            Chap::AwaitAlgorithms => {
                let ChapKeys {
                    algorithms: Some(offered),
                    identifier: None,
                    challenge: None,
                    name: None,
                    response: None,
                } = *keys
                else {
                    return Err(ChapFailure::Order);
                };
                let algorithm = choose(offered, allowed).ok_or(ChapFailure::NoAlgorithm)?;
                let challenge = challenge(algorithm, entropy)?;
                answer.pair("CHAP_A", &algorithm.number().to_string());
                answer.pair("CHAP_I", &challenge.identifier.to_string());
                answer.pair("CHAP_C", &text::encode_hex(challenge.as_bytes()));
                *self = Chap::AwaitResponse(challenge);
            }
            Chap::AwaitResponse(challenge) => {
                verify(challenge, keys, credentials)?;
                prove(challenge, keys, credentials, answer)?;
                *self = Chap::Done;
            }
            Chap::Done => return Err(ChapFailure::Order),
        }
        Ok(())
    }
}

/// The first algorithm that is allowed and offered: the choice is the target's.
fn choose(offered: &str, allowed: &[Algorithm]) -> Option<Algorithm> {
    let offers = |algorithm: Algorithm| {
        text::list(offered).any(|item| text::parse_number(item) == Some(u64::from(algorithm.number())))
    };
    allowed.iter().copied().find(|&algorithm| offers(algorithm))
}

fn challenge(algorithm: Algorithm, entropy: &mut dyn Entropy) -> Result<Challenge, EntropyFailed> {
    let mut identifier = [0];
    entropy.fill(&mut identifier)?;
    let mut challenge = Challenge {
        algorithm,
        identifier: identifier[0],
        bytes: [0; RESPONSE_BYTES_MAX],
        len: algorithm.response_bytes(),
    };
    entropy.fill(&mut challenge.bytes[..challenge.len])?;
    Ok(challenge)
}

/// Check the initiator's name and response. A wrong name takes as long as a wrong secret.
fn verify(challenge: &Challenge, keys: &ChapKeys<'_>, credentials: &ChapCredentials) -> Result<(), ChapFailure> {
    let ChapKeys { algorithms: None, name: Some(name), response: Some(response), .. } = *keys else {
        return Err(ChapFailure::Order);
    };
    let response = text::parse_binary(response, RESPONSE_BYTES_MAX).ok_or(ChapFailure::Malformed)?;
    if response.len() != challenge.algorithm.response_bytes() {
        return Err(ChapFailure::Malformed);
    }
    let account = credentials.initiator();
    let expected = challenge.algorithm.response(challenge.identifier, &account.secret, challenge.as_bytes());
    let right = expected.as_bytes().ct_eq(&response) & account.user.as_bytes().ct_eq(name.as_bytes());
    if bool::from(right) { Ok(()) } else { Err(ChapFailure::Wrong) }
}

/// Answer the initiator's challenge, when it sends one.
fn prove(
    ours: &Challenge,
    keys: &ChapKeys<'_>,
    credentials: &ChapCredentials,
    answer: &mut TextBuilder,
) -> Result<(), ChapFailure> {
    let (identifier, theirs) = match (keys.identifier, keys.challenge) {
        (None, None) => return Ok(()),
        (Some(identifier), Some(challenge)) => (identifier, challenge),
        _ => return Err(ChapFailure::Order),
    };
    let identifier = text::parse_number(identifier).and_then(|number| u8::try_from(number).ok());
    let identifier = identifier.ok_or(ChapFailure::Malformed)?;
    let theirs = text::parse_binary(theirs, CHALLENGE_BYTES_MAX).ok_or(ChapFailure::Malformed)?;
    if theirs.is_empty() {
        return Err(ChapFailure::Malformed);
    }
    if theirs == ours.as_bytes() {
        return Err(ChapFailure::Reflection);
    }
    let account = credentials.target().ok_or(ChapFailure::NoMutualSecret)?;
    let response = ours.algorithm.response(identifier, &account.secret, &theirs);
    answer.pair("CHAP_N", &account.user);
    answer.pair("CHAP_R", &text::encode_hex(response.as_bytes()));
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        text::parse_binary(&format!("0x{hex}"), CHALLENGE_BYTES_MAX).unwrap()
    }

    fn secret(text: &str) -> Secret {
        Secret::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn responses_of_other_implementations_are_reproduced() {
        // libiscsi 1.19 answering tgt, and tgt 1.0.85 answering libiscsi, from a capture.
        let challenge = bytes(
            "d3d90e71e3ccbfaa8be1ed788a98a620bfcd41f6681407c713da8ccb46ceb6167e09ff051554dd8b73bed97a2c0def514a90",
        );
        let response = Algorithm::Md5.response(1, &secret("secretsecret12"), &challenge);
        assert_eq!(response.as_bytes(), bytes("81072EC4B190C342EC5D84FCDD472AAF"));
        let challenge = bytes("06A8DBCA0BC280221ADF7B66BEE21B5B9603429873527042E2457FA392D2CA98");
        let response = Algorithm::Md5.response(1, &secret("targetsecret34"), &challenge);
        assert_eq!(response.as_bytes(), bytes("9f614291b290ebe905df5d18e71ce0cc"));
    }

    #[test]
    fn each_algorithm_agrees_with_an_independent_digest() {
        // Made with Python's hashlib: algorithm, identifier, first byte and length of a counting challenge, digest.
        for (algorithm, identifier, first, len, digest) in [
            (Algorithm::Md5, 0x27, 0xf0, 16, "dca29c85115897dab7e071700ea85c70"),
            (Algorithm::Sha1, 0xff, 1, 20, "e3aeec849d13080b4cbe2ca6230dad424c268563"),
            (Algorithm::Sha256, 0, 0x40, 32, "db74577b99fad6c5927fe8f5c33206ae3bb1f14269e2069b71821d5776dbeac7"),
            (Algorithm::Sha3_256, 0x80, 0x40, 32, "5938c34d111c8b87153ea2e7ea3d56faa762e6adcd9d41b75845ab733c0c1f04"),
        ] {
            let challenge: Vec<u8> = (first..=255).take(len).collect();
            let response = algorithm.response(identifier, &secret("secretsecret12"), &challenge);
            assert_eq!(response.as_bytes(), bytes(digest), "{algorithm:?}");
            assert_eq!(response.as_bytes().len(), algorithm.response_bytes());
        }
    }

    #[test]
    fn algorithms_have_names_and_the_numbers_of_the_registry() {
        let of = |name: &str| name.parse::<Algorithm>().unwrap();
        assert_eq!(["md5", "sha1", "sha256", "sha3-256"].map(|name| of(name).number()), [5, 6, 7, 8]);
        for algorithm in ALGORITHMS {
            assert_eq!(of(&algorithm.to_string()), algorithm);
        }
        assert!("sha-1".parse::<Algorithm>().is_err() && "".parse::<Algorithm>().is_err());
    }

    #[test]
    fn secrets_have_a_length_and_do_not_print() {
        assert_eq!(Secret::new(&[b'x'; 11]), Err(SecretLengthError(11)));
        assert_eq!(Secret::new(&[b'x'; 256]), Err(SecretLengthError(256)));
        assert!(Secret::new(&[b'x'; 12]).is_ok());
        assert!(Secret::new(&[b'x'; 255]).is_ok());
        assert_ne!(secret("abcdefghijkl"), secret("abcdefghijkm"));
        assert!(!format!("{:?}", secret("abcdefghijkl")).contains("abc"));
    }
}
