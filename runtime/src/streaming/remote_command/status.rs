//! How a command went, as a client is told at the end: Kubernetes' `metav1.Status`, or plain words for older clients.

use serde_json::json;

use super::Version;

/// What goes to the error stream; nothing where an older client is to take silence for success.
pub fn status(version: Version, outcome: &Result<i32, String>) -> Option<String> {
    let words = match outcome {
        Ok(0) if version < Version::V4 => return None,
        Ok(0) => String::new(),
        Ok(code) => format!("command terminated with non-zero exit code: exit code {code}"),
        Err(reason) => reason.clone(),
    };
    if version < Version::V4 {
        return Some(words);
    }
    let status = match outcome {
        Ok(0) => json!({ "metadata": {}, "status": "Success" }),
        Ok(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": words,
            "reason": "NonZeroExitCode",
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        }),
        Err(_) => json!({
            "metadata": {},
            "status": "Failure",
            "message": words,
            "reason": "InternalError",
            "details": { "causes": [{ "message": words }] },
            "code": 500,
        }),
    };
    Some(status.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(outcome: &Result<i32, String>) -> serde_json::Value {
        serde_json::from_str(&status(Version::V4, outcome).unwrap()).unwrap()
    }

    #[test]
    fn a_status_says_success_an_exit_code_or_why_not() {
        assert_eq!(of(&Ok(0))["status"], "Success");
        let failed = of(&Ok(7));
        assert_eq!(failed["status"], "Failure");
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0]["reason"], "ExitCode");
        assert_eq!(failed["details"]["causes"][0]["message"], "7");
        let broken = of(&Err("the \"machine\" ended".to_owned()));
        assert_eq!(broken["code"], 500);
        assert_eq!(broken["message"], "the \"machine\" ended");
    }

    #[test]
    fn older_clients_are_told_in_words_and_take_silence_for_success() {
        assert_eq!(status(Version::V3, &Ok(0)), None);
        assert!(status(Version::V1, &Ok(7)).unwrap().ends_with("exit code 7"));
        assert_eq!(status(Version::V2, &Err("why".to_owned())).unwrap(), "why");
    }
}
