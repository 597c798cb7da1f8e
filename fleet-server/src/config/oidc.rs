//! The table `[oidc]`: where people sign in, and what their groups may do.

use std::path::PathBuf;

use toml::Value;

use super::Reader;
use crate::access::Role;

/// An identity provider (OpenID Connect).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OidcConfig {
    /// Its address, exactly as its tokens have it.
    pub issuer: String,
    /// What it calls this server.
    pub client_id: String,
    /// A file with the secret that it gave this server, if it gave one.
    pub client_secret_file: Option<PathBuf>,
    /// A file with the authorities that sign its certificate; the machine's own by default.
    pub ca_file: Option<PathBuf>,
    /// Where browsers reach this server, when that is another address than devices are told.
    pub url: Option<String>,
    /// What is asked for.
    pub scopes: Vec<String>,
    /// The claim that names a person's groups.
    pub claim: String,
    /// The groups of each role.
    pub roles: Vec<(Role, Vec<String>)>,
}

impl OidcConfig {
    /// The most that one of these groups may do.
    #[must_use]
    pub fn role(&self, groups: &[&str]) -> Option<Role> {
        let is_in = |names: &[String]| names.iter().any(|name| groups.contains(&name.as_str()));
        self.roles.iter().filter(|(_, names)| is_in(names)).map(|(role, _)| *role).max()
    }
}

impl Reader {
    pub(super) fn oidc(&mut self) -> Option<OidcConfig> {
        let mut keys = self.inner("oidc", "a table with issuer, client_id and roles")??;
        let address = "an address in quotes that begins with https://";
        let is_address = |text: &str| text.strip_prefix("https://").is_some_and(|rest| !rest.is_empty());
        let is_origin = |text: &str| is_address(text) && !text["https://".len()..].contains('/');
        let issuer = keys.needed("issuer", address, is_address);
        let client_id = keys.needed("client_id", "a text in quotes", |text| !text.is_empty());
        let url = keys.words("url", &format!("{address}, without a path"), is_origin);
        let claim = keys.words("claim", "a text in quotes", |text| !text.is_empty());
        let (client_secret_file, ca_file) = (keys.path("client_secret_file"), keys.path("ca_file"));
        let mut scopes = vec!["openid".to_owned(), "profile".to_owned()];
        keys.texts("scopes", &mut scopes);
        if !scopes.iter().any(|scope| scope == "openid") {
            keys.problem("scopes", "must have \"openid\" among them");
        }
        let roles = keys.roles();
        self.take_problems("oidc", keys);
        let claim = claim.unwrap_or_else(|| "groups".to_owned());
        let (issuer, client_id) = (issuer?, client_id?);
        Some(OidcConfig { issuer, client_id, client_secret_file, ca_file, url, scopes, claim, roles })
    }

    /// The groups of each role.
    fn roles(&mut self) -> Vec<(Role, Vec<String>)> {
        let example = "viewer, analyst or admin, each a list of groups";
        let mut keys = match self.inner("roles", &format!("a table with {example}")) {
            Some(Some(keys)) => keys,
            Some(None) => return Vec::new(),
            None => {
                self.problem("roles", format!("is needed: [oidc.roles] and below it {example}"));
                return Vec::new();
            }
        };
        let mut roles = Vec::new();
        for role in Role::ALL {
            let mut groups = Vec::new();
            keys.texts(role.as_str(), &mut groups);
            roles.push((role, groups));
        }
        self.take_problems("roles", keys);
        roles
    }

    /// A text that `good` takes and that must be there.
    fn needed(&mut self, key: &str, form: &str, good: impl Fn(&str) -> bool) -> Option<String> {
        if !self.table.contains_key(key) {
            self.problem(key, format!("is needed: {form}"));
        }
        self.words(key, form, good)
    }

    /// A text that `good` takes.
    fn words(&mut self, key: &str, form: &str, good: impl Fn(&str) -> bool) -> Option<String> {
        match self.table.remove(key)? {
            Value::String(text) if good(&text) => Some(text),
            _ => {
                self.problem(key, format!("must be {form}"));
                None
            }
        }
    }

    /// A list of texts.
    fn texts(&mut self, key: &str, into: &mut Vec<String>) {
        let Some(value) = self.table.remove(key) else { return };
        match value.try_into::<Vec<String>>() {
            Ok(list) if list.len() <= 64 && list.iter().all(|text| !text.is_empty()) => *into = list,
            _ => self.problem(key, "must be a list of up to 64 texts in quotes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::access::Role;
    use crate::config::Config;

    const GOOD: &str = "[oidc]\nissuer = \"https://id.example\"\nclient_id = \"fleet\"\n";

    fn problems(text: &str) -> Vec<String> {
        Config::parse(text).unwrap_err().into_iter().map(|problem| problem.key).collect()
    }

    #[test]
    fn the_highest_role_of_all_groups_counts() {
        let roles = "[oidc.roles]\nviewer = [\"all\"]\nadmin = [\"ops\", \"chiefs\"]\n";
        let oidc = Config::parse(&format!("{GOOD}{roles}")).unwrap().oidc.unwrap();
        assert_eq!((oidc.claim.as_str(), oidc.scopes.len()), ("groups", 2));
        assert_eq!(oidc.role(&["all"]), Some(Role::Viewer));
        assert_eq!(oidc.role(&["all", "chiefs"]), Some(Role::Admin));
        assert_eq!(oidc.role(&["others"]), None);
    }

    #[test]
    fn what_is_missing_or_wrong_is_named_with_its_table() {
        assert_eq!(problems("[oidc]\n"), ["oidc.issuer", "oidc.client_id", "oidc.roles"]);
        assert_eq!(problems("oidc = 1"), ["oidc"]);
        let bad = "url = \"https://a/b\"\nscopes = [\"email\"]\nsecret = \"x\"\nroles = { root = [\"a\"], admin = \"b\" }\n";
        let found = problems(&format!("{}{bad}", GOOD.replace("https://id", "http://id")));
        let wanted =
            ["oidc.issuer", "oidc.url", "oidc.scopes", "oidc.roles.admin", "oidc.roles.root", "oidc.secret"];
        assert_eq!(found, wanted);
    }
}
