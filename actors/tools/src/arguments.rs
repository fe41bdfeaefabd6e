//! JSON Schema: arguments and results are checked against it whole.

use rmcp::model::JsonObject;
use serde_json::Value;

use crate::Problem;

/// A schema, compiled. It refers to nothing outside itself.
pub(crate) struct Schema(jsonschema::Validator);

impl Schema {
    /// # Errors
    /// What is wrong with it, as JSON Pointers into it.
    pub(crate) fn new(schema: &JsonObject) -> Result<Self, Vec<Problem>> {
        let schema = Value::Object(schema.clone());
        jsonschema::options()
            .build(&schema)
            .map(Self)
            .map_err(|error| vec![Problem::new(error.instance_path().to_string(), error.to_string())])
    }

    /// # Errors
    /// What is wrong with `value`, as JSON Pointers into it.
    pub(crate) fn check(&self, value: &Value) -> Result<(), Vec<Problem>> {
        if self.0.is_valid(value) {
            return Ok(());
        }
        Err(self.0.iter_errors(value).map(|error| Problem::new(error.instance_path().to_string(), error.to_string())).collect())
    }
}
