//! Secrets by reference.

use kadence_core::config::SecretRef;

/// The secret that a file or an environment variable holds; why not, without the secret, if it cannot be had.
pub(crate) fn read(secret: &SecretRef) -> Result<String, String> {
    let text = match secret {
        SecretRef::File(path) => {
            let text = fs_err::read_to_string(path).map_err(|e| format!("the password for sudo: {e}"))?;
            text.lines().next().unwrap_or_default().to_owned()
        }
        SecretRef::Env(name) => std::env::var(name)
            .map_err(|_| format!("the password for sudo: the environment variable {name} is not set"))?,
    };
    if text.is_empty() {
        return Err("the password for sudo is empty (ssh.sudo in kadence.yaml)".to_owned());
    }
    Ok(text)
}
