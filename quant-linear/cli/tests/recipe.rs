//! Recipes, their records, ties, dry runs and strict ones.

mod common;

use std::fs;

use common::*;
use safetensors::Dtype;

fn names(list: &serde_json::Value) -> Vec<&str> {
    let mut names: Vec<_> =
        list.as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_recipe_gives_formats_by_name_and_its_record_makes_the_same_bytes() {
    let folder = Folder::new();
    write(&folder.at("in"), &model());
    let toml = "
        [[rules]]
        match = \"a.*\"
        format = \"mxfp4\"
        transform = \"hadamard\"
        transform_block = 64
        scale_rule = \"even\"
        [[rules]]
        names = [\"embed_tokens.weight\"]
        format = \"nvfp4\"
        global_scale = 0.25
        activation_scale = 0.5
        scale_rule = \"nearest\"
        [[rules]]
        match = [\"d.*\", \"nothing.here\"]
        format = \"dense\"
    ";
    fs::write(folder.at("recipe.toml"), toml).unwrap();
    let (input, recipe, record) =
        (folder.arg("in"), folder.arg("recipe.toml"), folder.arg("record"));
    let args = ["quantize", &input, "-o", &folder.arg("out"), "--format", "nvfp4"];
    let first = json(&[&args[..], &["--recipe", &recipe, "--write-recipe", &record]].concat());
    assert_eq!(names(&first["tensors"]), ["a.weight", "b.c.weight", "embed_tokens.weight"]);
    let of = |name: &str| {
        let rows = first["tensors"].as_array().unwrap();
        rows.iter().find(|row| row["name"] == name).unwrap()["format"].clone()
    };
    assert_eq!([of("a.weight"), of("b.c.weight")], ["mxfp4", "nvfp4"]);
    let kept = first["skipped"].as_array().unwrap().iter().find(|s| s["name"] == "d.weight");
    assert_eq!(kept.unwrap()["reason"], "the recipe keeps it dense");
    let out = folder.at("out");
    let a = layer(&out, "a");
    assert_eq!(a.weight().unwrap().shape().group().get(), 32);
    assert_eq!(a.transform().unwrap().shape(), [64, 64]);
    let embedding = layer(&out, "embed_tokens");
    assert_eq!(embedding.weight_global_scale(), 0.25);
    assert_eq!(embedding.activation_global_scale(), 0.5);
    let recorded = fs::read_to_string(folder.at("record")).unwrap();
    for rule in ["even", "nearest", "search"] {
        assert!(recorded.contains(&format!("\"scale_rule\": \"{rule}\"")), "{recorded}");
    }
    let bytes = fs::read(&out).unwrap();
    let metadata = safetensors::SafeTensors::read_metadata(&bytes).unwrap().1.metadata().clone();
    assert_eq!(metadata.unwrap()["exact_fp4.scale_rule"], "mixed");
    // The record, without any other option.
    let again = folder.arg("again");
    ok(&["quantize", &input, "-o", &again, "--recipe", &record]);
    assert_eq!(fs::read(&again).unwrap(), fs::read(&out).unwrap());
    // It is not replaced unasked.
    let taken = [&args[..], &["--write-recipe", &record, "--dry-run"]].concat();
    fails(&taken, &["--write-recipe", "--force"]);
}

#[test]
fn recipes_that_cannot_be_followed_are_errors_that_say_why() {
    let folder = Folder::new();
    write(&folder.at("in"), &model());
    let (input, recipe) = (folder.arg("in"), folder.arg("recipe"));
    let before = |text: &str| {
        fs::write(folder.at("recipe"), text).unwrap();
        folder.snapshot()
    };
    for (text, needles) in [
        ("[[rules]]\nformat = \"mxfp4\"", &["rule 1", "`match` nor `names`"][..]),
        ("[[rules]]\nmatch = \"a*\"\nformat = \"fp8\"", &["fp8"]),
        ("{ \"rules\": [ }", &["recipe", "line 1"]),
        ("[[rules]]\nmatch = \"[\"\nformat = \"mxfp4\"", &["rule 1", "`[`"]),
        ("[[rules]]\nmatch = \"zz*\"\nformat = \"mxfp4\"", &["zz*", "matches no tensor"]),
        ("[[rules]]\nnames = [\"zz\"]\nformat = \"mxfp4\"", &["zz", "matches no tensor"]),
        ("[[rules]]\nnames = [\"a.bias\"]\nformat = \"mxfp4\"", &["a.bias", "cannot be quantized"]),
        ("[[rules]]\nmatch = \"a*\"\nunknown = 1", &["unknown"]),
        ("[[rules]]\nmatch = \"a*\"\ntransform_block = 64", &["transform_block"]),
        (
            "[[rules]]\nmatch = \"a*\"\nscale_rule = \"up\"",
            &["rule 1", "scale_rule", "`up`", "nearest", "search"],
        ),
        (
            "[[rules]]\nmatch = \"a*\"\nscale_rule = \"floor\"",
            &["rule 1", "floor", "not for e4m3", "search"],
        ),
        ("[[rules]]\nmatch = \"a*\"\nglobal_scale = -1.0", &["rule 1", "scale"]),
        ("tie = [\"q\"]", &["tie"]),
    ] {
        let unchanged = before(text);
        let args = ["quantize", &input, "-o", &folder.arg("out"), "--format", "nvfp4"];
        fails(&[&args[..], &["--recipe", &recipe]].concat(), needles);
        assert_eq!(folder.snapshot(), unchanged, "{text}");
    }
    before("[[rules]]\nmatch = \"a*\"");
    let args = ["quantize", &input, "-o", &folder.arg("out"), "--recipe", &recipe];
    fails(&args, &["rule 1", "no format", "--format"]);
    before("\u{feff}\u{1b}[2J");
    let (_, stderr) = code(&args, 2);
    assert!(!stderr.contains('\u{1b}'), "{stderr:?}");
}

#[test]
fn tied_weights_share_the_scale_of_the_largest() {
    let folder = Folder::new();
    let scaled = |name: &str, seed, factor: f32| {
        let values: Vec<f32> = numbers(seed, 16 * 64).iter().map(|v| v * factor).collect();
        f32s(name, &[16, 64], &values)
    };
    let parts = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"];
    let tensors = parts.iter().zip(1..).flat_map(|(part, i)| {
        ["x", "y"].map(|module| scaled(&format!("{module}.{part}.weight"), i, i as f32))
    });
    write(&folder.at("in"), &tensors.collect::<Vec<_>>());
    let (input, output) = (folder.arg("in"), folder.arg("out"));
    let run = |more: &[&str]| {
        let args = ["quantize", &input, "-o", &output, "--format", "nvfp4", "--force"];
        ok(&[&args[..], more].concat());
        parts.map(|part| layer(&folder.at("out"), &format!("x.{part}")).weight_global_scale())
    };
    let [q, k, v, o, gate, up] = run(&[]);
    assert!(q < k && k < v && gate < up);
    assert_eq!(run(&["--tie", "qkv"]), [v, v, v, o, gate, up]);
    assert_eq!(run(&["--tie", "qkv,gate-up", "--threads", "2"]), [v, v, v, o, up, up]);
    fails(
        &["quantize", &input, "-o", &output, "--format", "nvfp4", "--tie", "kv"],
        &["`kv`", "gate-up"],
    );
}

#[test]
fn a_dry_run_writes_nothing_and_plans_what_a_run_does() {
    let folder = Folder::new();
    write(&folder.at("in"), &model());
    let input = folder.arg("in");
    let before = folder.snapshot();
    let dry = json(&["quantize", &input, "--format", "nvfp4", "--dry-run"]);
    // A place that could not be written does not matter.
    let elsewhere = folder.arg("no/such/folder/out");
    ok(&["quantize", &input, "-o", &elsewhere, "--format", "nvfp4", "--dry-run"]);
    assert_eq!(folder.snapshot(), before);
    assert_eq!((&dry["dry_run"], &dry["output"]), (&true.into(), &serde_json::Value::Null));
    let wet = json(&["quantize", &input, "-o", &folder.arg("out"), "--format", "nvfp4"]);
    assert_eq!(names(&dry["tensors"]), names(&wet["tensors"]));
    assert_eq!(dry["skipped"], wet["skipped"]);
    for key in ["tensors", "copied", "bytes_before", "bytes_after", "file_bytes_after"] {
        assert_eq!(dry["totals"][key], wet["totals"][key], "{key}");
    }
    // Every tensor of two or more dimensions is in one list, with its bytes.
    let mut all = [names(&dry["tensors"]), names(&dry["skipped"])].concat();
    all.sort();
    let matrices: Vec<_> = by_name(&model()).into_values().filter(|t| t.2.len() > 1).collect();
    assert_eq!(all, matrices.iter().map(|t| t.0.as_str()).collect::<Vec<_>>());
    for skipped in dry["skipped"].as_array().unwrap() {
        let tensor = matrices.iter().find(|t| t.0 == skipped["name"]).unwrap();
        assert_eq!(skipped["bytes"], tensor.3.len());
    }
    let text = ok(&["quantize", &input, "--format", "nvfp4", "--dry-run"]);
    assert!(text.contains("(dry run)") && text.contains("% of the input"), "{text}");
}

#[test]
fn strict_makes_what_cannot_be_quantized_an_error() {
    let folder = Folder::new();
    write(
        &folder.at("in"),
        &[
            random("good.weight", Dtype::F32, &[4, 64], 1),
            random("odd.weight", Dtype::F32, &[4, 40], 2),
            random("lm_head.weight", Dtype::F32, &[4, 40], 3),
        ],
    );
    let (input, output) = (folder.arg("in"), folder.arg("out"));
    let args = ["quantize", &input, "-o", &output, "--format", "nvfp4", "--strict"];
    fails(&args, &["--strict: 1 of", "odd.weight", "K = 40", "--exclude"]);
    // What nobody chose does not count.
    ok(&[&args[..], &["--exclude", "odd*"]].concat());
}

#[test]
fn one_huge_weight_is_warned_of_with_the_groups_that_it_cost() {
    let folder = Folder::new();
    let mut values = numbers(3, 16 * 64);
    values[70] = 3e38;
    write(&folder.at("in"), &[f32s("a.weight", &[16, 64], &values)]);
    let args = ["quantize", &folder.arg("in"), "-o", &folder.arg("out"), "--format", "nvfp4"];
    let json = json(&args);
    let row = &json["tensors"][0];
    assert_eq!(
        (&row["groups"], &row["zero_groups"], &row["lost_groups"]),
        (&64.into(), &63.into(), &63.into())
    );
    assert_eq!(row["group_sqnr_db"]["median"], 0.0);
    assert!(row["sqnr_db"].as_f64().unwrap() > 100.0);
    assert!(row["flushed_share"].as_f64().unwrap() > 0.98);
    let warnings = json["warnings"].to_string();
    assert!(warnings.contains("a.weight: 63 of 64 groups"), "{warnings}");
    let text = ok(&[&args[..], &["--force"]].concat());
    assert!(text.contains("warning: a.weight: 63 of 64 groups"), "{text}");
    // A global scale that is far too large loses all of them.
    let small: Vec<f32> = numbers(3, 16 * 64).iter().map(|v| v * 1e-6).collect();
    write(&folder.at("in"), &[f32s("a.weight", &[16, 64], &small)]);
    let json = common::json(&[&args[..], &["--force", "--global-scale", "1"]].concat());
    assert_eq!(json["tensors"][0]["lost_groups"], 64);
    assert!(json["warnings"].to_string().contains("64 of 64 groups"));
}

#[test]
fn what_activations_are_quantized_to_is_in_state_report_recipe_and_copies() {
    let folder = Folder::new();
    let mut tensors = model();
    // Whole groups of NVFP4 and of MXFP4's, not of MXINT8's.
    tensors.push(random("narrow.weight", Dtype::F32, &[4, 48], 8));
    write(&folder.at("in"), &tensors);
    let (input, out) = (folder.arg("in"), folder.arg("out"));
    let args = ["quantize", &input, "--format", "nvfp4", "--activations"];
    let to = |name: &str| folder.arg(name);
    let record = to("record");
    let more = ["mxint8", "-o", &out, "--write-recipe", &record];
    let done = json(&[&args[..], &more].concat());
    assert_eq!(done["activations"], "mxint8");
    assert!(names(&done["tensors"]).contains(&"a.weight"));
    let row = |list: &str, name: &str| {
        let rows = done[list].as_array().unwrap();
        rows.iter().find(|row| row["name"] == name).unwrap().clone()
    };
    assert_eq!(row("tensors", "a.weight")["activations"], "mxint8");
    let reason = row("skipped", "narrow.weight")["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("48") && reason.contains("mxint8"), "{reason}");
    let written = read(&folder.at("out"));
    let (_, dtype, shape, bytes) = &written["a.activation_encoding"];
    assert_eq!((*dtype, shape.len(), &bytes[..]), (Dtype::U8, 0, &[1][..]));
    assert_eq!(layer(&folder.at("out"), "a").activations().name(), "mxint8");
    let inspected = json(&["inspect", &out]);
    assert_eq!(inspected["layers"][0]["activations"], "mxint8");
    ok(&["quantize", &input, "-o", &to("again"), "--recipe", &record]);
    assert_eq!(fs::read(folder.at("again")).unwrap(), fs::read(folder.at("out")).unwrap());
    // Kept where the layout has a place for it, named where it has none.
    ok(&["convert", &out, &to("copy"), "--to", "native"]);
    assert_eq!(layer(&folder.at("copy"), "a").activations().name(), "mxint8");
    let foreign = json(&["convert", &out, &to("foreign"), "--to", "compressed-tensors"]);
    let notes = foreign["notes"].to_string();
    assert!(notes.contains("mxint8"), "{notes}");
    // Without, the file is as it always was; row scales are NVFP4's.
    ok(&[&args[..4], &["-o", &to("own")]].concat());
    assert!(!read(&folder.at("own")).contains_key("a.activation_encoding"));
    fails(&[&args[..], &["int8", "-o", &to("no")]].concat(), &["int8", "mxint8"]);
}

#[test]
fn row_scales_are_an_activation_scale_on_the_command_line_and_in_recipes() {
    let folder = Folder::new();
    let tensors = [
        random("a.weight", Dtype::F32, &[16, 64], 7),
        random("narrow.weight", Dtype::F32, &[8, 48], 8),
    ];
    write(&folder.at("in"), &tensors);
    let (input, to) = (folder.arg("in"), |name: &str| folder.arg(name));
    let args = ["quantize", &input, "--format", "nvfp4"];
    let (rows, record) = (to("rows"), to("record"));
    let row = ["--activation-scale", "row"];
    let more = ["-o", &rows, "--write-recipe", &record];
    let done = json(&[&args[..], &row, &more].concat());
    assert_eq!(done["activations"], "fp4-rows");
    assert_eq!(layer(&folder.at("rows"), "narrow").activations().byte(), 2);
    assert_eq!(json(&["inspect", &rows])["layers"][0]["activations"], "fp4-rows");
    let recipe = fs::read_to_string(folder.at("record")).unwrap();
    assert!(recipe.contains(r#""activation_scale": "row""#), "{recipe}");
    assert!(recipe.contains(r#""activations": "fp4""#), "{recipe}");
    ok(&["quantize", &input, "-o", &to("again"), "--recipe", &record]);
    assert_eq!(fs::read(folder.at("again")).unwrap(), fs::read(folder.at("rows")).unwrap());

    // A rule's scale is its own; left out, it is that of the options, where the format is theirs.
    let by = |name: &str, options: &[&str], rule: &str| {
        let text = format!("[[rules]]\nmatch = \"*\"\n{rule}\n");
        fs::write(folder.at("recipe"), text).unwrap();
        let recipe = ["-o", &to(name), "--recipe", &to("recipe")];
        [&["quantize", &input][..], options, &recipe]
            .concat()
            .iter()
            .map(|a| (*a).to_owned())
            .collect::<Vec<_>>()
    };
    fn strs(args: &[String]) -> Vec<&str> {
        args.iter().map(String::as_str).collect()
    }
    let with_rows = ["--format", "nvfp4", "--activation-scale", "row"];
    for (i, (options, rule, expected)) in [
        (&[][..], "format = \"nvfp4\"\nactivation_scale = \"row\"", 2),
        (&with_rows, "format = \"nvfp4\"", 2),
        (&with_rows, "activations = \"fp4\"", 2),
        (&with_rows, "activation_scale = 0.25", 0),
        (&with_rows, "format = \"mxfp4\"", 0),
        (&with_rows, "activations = \"mxint8\"", 1),
        (&["--format", "nvfp4", "--activations", "mxint8"], "activation_scale = 0.5", 1),
        (&["--format", "nvfp4", "--activations", "mxint8"], "activation_scale = \"row\"", 2),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("out{i}");
        ok(&strs(&by(&name, options, rule)));
        assert_eq!(layer(&folder.at(&name), "a").activations().byte(), expected, "{rule}");
    }
    for (rule, said) in [
        ("format = \"mxfp4\"\nactivation_scale = \"row\"", "row scales"),
        ("activations = \"mxint8\"\nactivation_scale = \"row\"", "leave one of the two out"),
        ("activations = \"fp4-rows\"", "activation_scale = \"row\""),
        ("activations = \"int8\"", "expected fp4 or mxint8"),
    ] {
        fails(&strs(&by("no", &args[2..], rule)), &["rule 1", said]);
    }
    let rows = by("no", &args[2..], "activation_scale = \"rows\"");
    fails(&strs(&rows), &["line 3", "an activation_scale is a number or"]);
    // On the command line.
    let to_no = ["-o", &to("no")];
    let mxfp4 = ["quantize", &input, "--format", "mxfp4"];
    fails(&[&mxfp4[..], &row, &to_no].concat(), &["--activation-scale row is for --format nvfp4"]);
    let both = [&args[..], &row, &["--activations", "mxint8"], &to_no].concat();
    fails(&both, &["leave one of the two out"]);
    let old = [&args[..], &["--activations", "fp4-rows"], &to_no].concat();
    fails(&old, &["fp4-rows", "--activation-scale row"]);
    let unknown = [&args[..], &["--activation-scale", "rows"], &to_no].concat();
    fails(&unknown, &["`rows` is no scale", "or `row`"]);
    // A quantized model gets them by a conversion to itself, and loses them by another.
    ok(&[&args[..], &["-o", &to("own")]].concat());
    ok(&["convert", &to("own"), &to("turned"), "--to", "native", "--activation-scale", "row"]);
    assert_eq!(layer(&folder.at("turned"), "a").activations().byte(), 2);
    ok(&["convert", &to("turned"), &to("back"), "--to", "native", "--activations", "fp4"]);
    assert_eq!(layer(&folder.at("back"), "a").activations().byte(), 0);
    let foreign = ["convert", &to("own"), &to("no"), "--to", "compressed-tensors"];
    let foreign = [&foreign[..], &row].concat();
    fails(&foreign, &["--activation-scale is for --to native"]);
}
