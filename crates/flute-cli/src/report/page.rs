//! The report as one page of HTML: plots and tables in it, nothing loaded from anywhere.

use super::{Compared, Report};
use std::fmt::Write;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:820px;margin:2rem auto;padding:0 1rem;\
                     color:#1a1a1a;background:#fff}svg{max-width:100%;height:auto}\
                     table{border-collapse:collapse;font-variant-numeric:tabular-nums;width:100%}\
                     th,td{padding:.2rem .6rem;border-bottom:1px solid #ddd;text-align:right}\
                     th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}";

/// The page of `report`, whose models are drawn in `plots`.
pub(super) fn render(report: &Report, plots: &[String]) -> String {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>What quantizing costs</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <h1>What quantizing costs</h1>\n<p>{}</p>\n",
        escaped(&report.measured())
    );
    for (compared, plot) in report.models.iter().zip(plots) {
        let name = escaped(&compared.model);
        page += &format!("<h2>{name}</h2>\n<figure>\n{plot}</figure>\n{}", table(compared));
    }
    page + "</body>\n</html>\n"
}

fn table(compared: &Compared) -> String {
    let mut table = String::from(
        "<table>\n<tr><th>table</th><th>format</th><th>bits a weight</th><th>perplexity</th><th>change</th></tr>\n",
    );
    for way in &compared.ways {
        // Writing to a string does not fail.
        let _ = writeln!(
            table,
            "<tr><td>{}</td><td>{}</td><td>{:.3}</td><td>{:.3}</td><td>{}</td></tr>",
            way.series.name(),
            way.format,
            way.bits_per_weight,
            way.perplexity,
            compared.change(way)
        );
    }
    table + "</table>\n"
}

/// Text as HTML: a directory may be called anything.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
