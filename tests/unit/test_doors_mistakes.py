"""Deliberate mistakes at the doors: each gives one line of error and one of hint, as written here."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from privinfer.cli import main as cli
from privinfer.cli.door import one_sample
from privinfer.errors import ConfigError
from privinfer.io.door import digest
from privinfer.io.spec import read_door
from privinfer.session import Manifest
from privinfer.session.terms import Terms
from tests.adversarial import stage

DATA = Path(__file__).resolve().parents[1] / "data" / "doors"
CONFIG, INPUT = 11, 13  # exit codes

SCORE = f'door = "genotypes"\nscore = "{DATA}/PGS000586_part_hmPOS_GRCh38.txt.gz"\nbuild = "GRCh38"\n'
FORWARD = SCORE + 'ambiguous = "forward"\nabsent = "zero"\n'
PANEL = 'door = "genotypes"\nbuild = "GRCh37"\n'
ONE = PANEL + 'sites = [{chrom = "1", pos = 838555, effect = "A", other = "C", rsid = "rs4970383"}]\n'
WRONG = PANEL + 'sites = [{chrom = "1", pos = 838555, effect = "G", other = "T"}]\n'


def lab(unit: str, low: float = 0, high: float = 1000, loinc: str = "718-7", more: str = "") -> str:
    return (
        f'door = "fhir"\n[[quantities]]\nname = "haemoglobin"\nunit = "{unit}"\nlow = {low}\nhigh = {high}\n'
        f'loinc = ["{loinc}"]\n{more}'
    )


def table(name: str, more: str = "unit = 'g/L'\nlow = 10\nhigh = 80") -> str:
    return f'door = "table"\n[[quantities]]\nname = "{name}"\n{more}\n'


DICOM = 'door = "dicom"\n'

# file, door file, exit code, error, hint
MISTAKES: dict[str, tuple[str, str, int, str, str]] = {
    "no such file": (
        "gone.dcm",
        DICOM,
        INPUT,
        "there is no file gone.dcm",
        "names are relative to where the command runs",
    ),
    "swapped files": (
        *("lesley.json", DICOM, INPUT, "lesley.json is no DICOM file, or is cut off"),
        "was it swapped with another input's file?",
    ),
    "swapped files, the other way": (
        *("chest_64.dcm", lab("g/dL"), INPUT, "chest_64.dcm is no text file"),
        "was it swapped with another input's file?",
    ),
    "truncated DICOM": (
        *("cut.dcm", DICOM, INPUT, "cut.dcm: the picture cannot be decoded", "it is cut off or damaged"),
    ),
    "wrong body part": (
        *("chest_64.dcm", DICOM + 'body_parts = ["KNEE"]', INPUT, "chest_64.dcm: body part is not KNEE"),
        "is it the right picture of the right study?",
    ),
    "wrong window": (
        *("chest_64.dcm", DICOM + "window = [9000, 200]", INPUT),
        *("chest_64.dcm: the window shows one grey", "its centre and width do not fit the pixels"),
    ),
    "window of no width": (
        *("chest_64.dcm", DICOM + "window = [40, 0]", CONFIG),
        "window of a dicom door is not [centre, width] with a width of 1 or more",
        '[2048, 4096], in rescaled units; or "file", or "bits"',
    ),
    "misspelt setting": (
        *("chest_64.dcm", DICOM + "windows = [40, 80]", CONFIG),
        "'windows' is no setting of this door",
        "docs/doors.md lists them",
    ),
    "setting of another kind": (
        *("chest_64.dcm", DICOM + "size = 28", CONFIG, "setting 'size' of the door is of another kind"),
        "docs/doors.md says which",
    ),
    "no kind": (
        *("chest_64.dcm", "size = [28, 28]", CONFIG),
        *(
            "door file door.toml: door is none of dicom, genotypes, fhir, table",
            'its first line says, for example, door = "dicom"',
        ),
    ),
    "no TOML": (
        *("chest_64.dcm", "door: dicom", CONFIG, "door file door.toml is no TOML"),
        "docs/doors.md shows one of each kind",
    ),
    "wrong allele": (
        *("NA06984_23andme_style.txt", WRONG, INPUT),
        "NA06984_23andme_style.txt: site 1:838555_G at 1:838555 has other alleles than the site's",
        'the effect allele may be named on the other strand: strand = "either"',
    ),
    "other build": (
        *("kidd_10.vcf", FORWARD, INPUT, "kidd_10.vcf is of GRCh37, and the sites are of GRCh38"),
        "use the sites or score file of that build, or lift the file over",
    ),
    "score of another build": (
        *("kidd_10.vcf", SCORE.replace('"GRCh38"', '"GRCh37"'), CONFIG),
        "PGS000586_part_hmPOS_GRCh38.txt.gz has positions of GRCh38, not of GRCh37",
        "the Catalog has PGS000586_hmPOS_GRCh37.txt.gz",
    ),
    "build not said": (
        *("panel.bed", ONE, INPUT, "panel.bed does not say its build"),
        'if it is of GRCh37, set file_build = "GRCh37" in the door file',
    ),
    "files of two sets": (
        *("mixed.bed", ONE + 'file_build = "GRCh37"', INPUT),
        "mixed.bed has another size than its .bim and .fam say",
        "it is cut off, or the three files are of different sets",
    ),
    "ambiguous strands": (
        *("pgs000586_part_6_GRCh38.vcf.gz", SCORE, CONFIG),
        "30 sites are A/T or C/G, 1:24412730 first: their strand cannot be told",
        'set ambiguous = "forward" where files are on the forward strand, or "gap"',
    ),
    "site that is not there": (
        *("NA06984_23andme_style.txt", ONE.replace("838555", "838556").replace("rs4970383", ""), INPUT),
        "NA06984_23andme_style.txt: site 1:838556_A at 1:838556 has no record",
        'say what it is taken for with absent = "zero" or "mean"',
    ),
    "rs number at another place": (
        *("NA06984_23andme_style.txt", ONE.replace("838555", "902943"), INPUT),
        "NA06984_23andme_style.txt has rs4970383 at another place than GRCh37 has it",
        "the file is of another build than the sites",
    ),
    "truncated VCF": (
        *("cut.vcf.gz", FORWARD, INPUT, "cut.vcf.gz is truncated or damaged", "copy it again"),
    ),
    "score that is not there": (
        *("kidd_10.vcf#HG99999", FORWARD.replace("GRCh38", "GRCh37"), CONFIG),
        f"the door file names {DATA}/PGS000586_part_hmPOS_GRCh37.txt.gz, and there is no such file",
        "names in a door file are relative to it",
    ),
    "nobody of that name in the file": (
        *("panel.bed#HG99999", ONE + 'file_build = "GRCh37"', INPUT),
        *("panel.bed has nobody of the name after the #", "case counts"),
    ),
    "unit of something else": (
        *("lesley.json", lab("mmol/L", loinc="718-7"), INPUT),
        "lesley.json: 'haemoglobin': unit 'g/dL' does not become 'mmol/L' without a molar mass",
        "give the quantity a molar_mass (g/mol) in the door file",
    ),
    "unit that is no quantity of this kind": (
        *("lesley.json", lab("fL"), INPUT),
        "lesley.json: 'haemoglobin': unit 'g/dL' measures something else than 'fL'",
        "correct the unit where the data come from; nothing is guessed",
    ),
    "unit that is no UCUM": (
        *("lesley.json", lab("gm/dl"), CONFIG, "quantity 'haemoglobin': unit 'gm/dl' is unknown"),
        "units are UCUM codes: mg/dL, mmol/L, 10*9/L, U/L",
    ),
    "value without a UCUM unit": (
        *("plain_unit.json", lab("g/dL"), INPUT, "plain_unit.json: 'haemoglobin' has no UCUM unit"),
        "valueQuantity needs system http://unitsofmeasure.org",
    ),
    "result that is a bound": (
        *("bound.json", lab("g/dL"), INPUT, "bound.json: 'haemoglobin' is a bound and no number"),
        "it lies beyond what was measured; ask the laboratory for a number",
    ),
    "two people in a bundle": (
        *("crowd.json", lab("g/dL"), INPUT, "crowd.json holds results of several people"),
        "export one bundle a person",
    ),
    "out of range": (
        *("lesley.json", lab("g/dL", 14, 20), INPUT),
        "lesley.json: 'haemoglobin' lies outside of 14..20 g/dL",
        "is it in another unit? else widen the range in the door file, for all parties",
    ),
    "test that was never made": (
        *("lesley.json", lab("mg/dL", loinc="2345-7"), INPUT, "lesley.json has no 'haemoglobin'"),
        "add it, or declare in the door file what a missing one is taken for",
    ),
    "mistyped LOINC code": (
        *("lesley.json", lab("g/dL", loinc="718-8"), CONFIG),
        "quantity 'haemoglobin': '718-8' is no LOINC code",
        "its last digit is a check digit",
    ),
    "text in a number column": (
        *("hcv_liver_20.csv", table("category", "low = 0\nhigh = 4"), INPUT),
        "hcv_liver_20.csv row 1: 'category' is not a number",
        "write numbers with a decimal point, without unit",
    ),
    "unknown category": (
        *("hcv_liver_20.csv", table("sex", "low = 0\nhigh = 1\ncategories = {m = 0, f = 1}"), INPUT),
        "hcv_liver_20.csv row 1: 'sex' is none of the declared categories",
        "known: f, m",
    ),
    "misspelt column": (
        *("hcv_liver_20.csv", table("albumin"), INPUT, "hcv_liver_20.csv has no column 'albumin'"),
        "compare its header with the door file; case counts",
    ),
    "another separator": (
        *("semicolons.csv", table("a"), INPUT, "semicolons.csv row 2 has 2 cells, and the header 1"),
        "is it separated by ',', and is it whole?",
    ),
    "no range": (
        *("hcv_liver_20.csv", table("albumin_g_l", "unit = 'g/L'"), CONFIG),
        "quantity 'albumin_g_l' has no low",
        "a range is declared, not guessed: low and high, in the quantity's unit",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of the tests and what became of some of them."""
    made = tmp_path_factory.mktemp("mistakes")
    for file in DATA.iterdir():
        shutil.copy(file, made)
    (made / "cut.dcm").write_bytes((DATA / "chest_64.dcm").read_bytes()[:3000])
    vcf = DATA / "pgs000586_part_6_GRCh38.vcf.gz"
    (made / "cut.vcf.gz").write_bytes(vcf.read_bytes()[:2000])
    assert gzip.decompress(vcf.read_bytes())
    (made / "semicolons.csv").write_text("a;b\n1;2\n1,5;2\n")
    for suffix in (".bed", ".bim", ".fam"):
        shutil.copy(DATA / f"panel{suffix}", made / f"mixed{suffix}")
    (made / "mixed.fam").write_text((DATA / "panel.fam").read_text().split("\n", 5)[-1])
    for name, change in (
        ("bound", lambda r: r["valueQuantity"].update(comparator="<")),
        ("plain_unit", lambda r: r["valueQuantity"].pop("system")),
        ("crowd", lambda r: r["subject"].update(reference="Patient/other")),
    ):
        bundle = json.loads((DATA / "lesley.json").read_text())
        for entry in bundle["entry"]:
            code = entry["resource"].get("code", {}).get("coding", [{}])[0].get("code")
            if code == "718-7":
                change(entry["resource"])
        (made / f"{name}.json").write_text(json.dumps(bundle))
    return made


@pytest.fixture
def typed(monkeypatch, capfd, folder):
    """Type a command in the folder: (exit code, standard output, standard error)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["privinfer", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0), *capfd.readouterr()

    return run


def session(folder: Path) -> Path:
    """Where the session file goes; that of another test is gone."""
    (folder / "session.toml").unlink(missing_ok=True)
    return folder / "session.toml"


def form(error: str, hint: str) -> str:
    return f"privinfer: error: {error}\nprivinfer: hint: {hint}\n"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gives_one_error_and_one_hint(typed, folder, mistake: str) -> None:
    file, door, code, error, hint = MISTAKES[mistake]
    for module in {"dicom": ["pydicom"], "genotypes": ["bed_reader"] * file.startswith("panel.bed#")}.get(
        door.split('"')[1] if '"' in door else "", []
    ):
        pytest.importorskip(module)
    (folder / "door.toml").write_text(door)
    assert typed("door", "try", "door.toml", file) == (code, "", form(error, hint))


@pytest.mark.parametrize(
    ("file", "kind"), [("kidd_10.vcf", "genotypes"), ("panel.bed", "genotypes"), ("lesley.json", "fhir")]
)
def test_files_that_need_a_door_say_so(typed, folder, file: str, kind: str) -> None:
    stage.manifest().save(session(folder))
    name, owner = next(iter(stage.manifest().inputs.items()))
    found = typed("party", owner, "--input", f"{name}={file}")
    hint = f'--door NAME=FILE.toml with door = "{kind}"; docs/doors.md shows one'
    assert found == (INPUT, "", form(f"{file} needs a door file", hint))


@pytest.mark.parametrize(
    ("module", "door", "file", "package", "extra"),
    [
        ("pydicom", DICOM, "chest_64.dcm", "pydicom", "dicom"),
        ("bed_reader", ONE + 'file_build = "GRCh37"', "panel.bed", "bed-reader", "genomics"),
        ("pyarrow.parquet", table("a"), "t.parquet", "pyarrow", "tables"),
    ],
)
def test_a_missing_extra_is_named(
    typed, folder, monkeypatch, module: str, door: str, file: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (folder / "door.toml").write_text(door)
    found = typed("door", "try", "door.toml", file)
    error = f"this door needs {package}, which is not installed"
    assert found == (CONFIG, "", form(error, f"pip install 'privinfer[{extra}]'"))


# -- what the session agreed to --------------------------------------------------------------------


def test_the_how_to_is_read_as_it_stands(tmp_path) -> None:
    page = (DATA.parents[2] / "docs" / "doors.md").read_text()
    blocks = [b for b in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if b.startswith("door =")]
    shutil.copy(DATA / "PGS000586_part_hmPOS_GRCh38.txt.gz", tmp_path / "PGS000586_hmPOS_GRCh38.txt.gz")
    kinds = []
    for block in blocks:
        text = block.replace('ambiguous = "refuse"', 'ambiguous = "forward"')  # the score has such sites
        (tmp_path / "door.toml").write_text(text)
        kinds.append(read_door(tmp_path / "door.toml").declaration()["door"])
    assert kinds == ["dicom", "genotypes", "fhir", "table"]


def test_a_session_holds_its_doors(tmp_path) -> None:
    (tmp_path / "door.toml").write_text(lab("g/dL"))
    door = digest(read_door(tmp_path / "door.toml"))
    name = sorted(stage.manifest().inputs)[0]
    manifest = stage.manifest(terms=Terms(doors={name: door}))
    assert Manifest.loads(manifest.raw).terms.doors == {name: door}
    assert manifest.terms.plain()["doors"] == {name: door}
    with pytest.raises(ConfigError, match=r"terms\.doors names 'nothing', which is no input"):
        stage.manifest(terms=Terms(doors={"nothing": door}))
    with pytest.raises(ConfigError, match="is not 64 lower-case hex digits"):
        Terms(doors={name: "door.toml"})


def test_an_input_comes_through_the_agreed_door(typed, folder) -> None:
    (folder / "agreed.toml").write_text(lab("g/dL", 0, 30))
    (folder / "other.toml").write_text(lab("g/dL", 0, 31))
    name, owner = next(iter(stage.manifest().inputs.items()))
    doors = {name: digest(read_door(folder / "agreed.toml"))}
    stage.manifest(terms=Terms(doors=doors)).save(session(folder))
    np.save(folder / "x.npy", np.zeros((1, 3)))
    error = f"input '{name}' has to come through the door the session agreed to"
    hint = f"--door {name}=FILE.toml with the door file whose digest the session holds"
    for arguments in (
        ("--input", f"{name}=x.npy"),
        ("--input", f"{name}=lesley.json", "--door", f"{name}=other.toml"),
    ):
        assert typed("party", owner, *arguments) == (CONFIG, "", form(error, hint))
    # through the right one, the next thing that is looked for is the key
    code, _, err = typed("party", owner, "--input", f"{name}=lesley.json", "--door", f"{name}=agreed.toml")
    assert (code, "the session agreed to" in err) == (CONFIG, False)


def test_a_door_for_no_input(typed, folder) -> None:
    stage.manifest().save(session(folder))
    owner = next(iter(stage.manifest().inputs.values()))
    (folder / "door.toml").write_text(DICOM)
    found = typed("party", owner, "--door", "y=door.toml")
    assert found == (INPUT, "", form("--door names 'y', and --input does not", "both take the input's name"))


def test_show_prints_what_is_agreed(typed, folder) -> None:
    (folder / "door.toml").write_text(lab("g/dL"))
    code, out, err = typed("door", "show", "door.toml")
    declared, _, last = out.rstrip("\n").rpartition("\n")
    assert (code, err) == (0, "")
    assert json.loads(declared) == read_door(folder / "door.toml").declaration()
    assert last == f"sha256 {digest(read_door(folder / 'door.toml'))}"
    # every setting counts
    (folder / "door.toml").write_text(lab("g/L"))
    assert last != f"sha256 {digest(read_door(folder / 'door.toml'))}"


def test_try_shows_no_value(typed, folder) -> None:
    (folder / "door.toml").write_text(lab("g/L"))
    assert typed("door", "try", "door.toml", "lesley.json") == (
        0,
        "shape 1 x 1, range 0..1000\nconverted: 1\n",
        "",
    )


def test_a_fragment_takes_one_row_through_a_door(typed, folder) -> None:
    (folder / "door.toml").write_text(table("albumin_g_l"))
    arguments = ("fragment", "encrypt", "lab", "blood", "hcv_liver_20.csv", "--range", "0:1")
    found = typed(*arguments, "--door", "door.toml")
    assert found == (INPUT, "", form("hcv_liver_20.csv has 20 rows, not one", "pick one with FILE#ROW"))
    found = typed(*arguments, "--door", "door.toml", "--array", "a")
    assert found == (
        CONFIG,
        "",
        form("--array and --door exclude each other", "an .npz has arrays, and no door"),
    )
    (folder / "door.toml").write_text('identifier = "row_id"\n' + table("albumin_g_l"))
    assert one_sample("hcv_liver_20.csv#hcv002", folder / "door.toml").tolist() == [46.9]
