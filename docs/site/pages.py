"""Hook of MkDocs: the pages of the site that are no files in docs/, and links between folders.

The home page is README.md. The site has the files of the repository's root that pages link to, so
that a link works on GitHub and in the site.
"""

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
from options import option_pages

ROOT = Path(__file__).parent.parent.parent
HOME = "README.md"
FILES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff", "LICENSE")
"""Files of the root of the repository that the site has, beside the home page."""
PACKAGE = ("__init__.py", "agents", "configs", "envs", "policies")
"""Contents of the import package, as far as the reference needs them."""
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s#]+)")
"""Target of a link to a file, without the section."""
API = {
    "agents": (
        "Agents",
        "mirl.agents",
        "mirl.agents.on_policy.rollout_buffer",
        "mirl.agents.on_policy.minibatch",
        "mirl.agents.on_policy.losses",
        "mirl.agents.on_policy.action_evaluation",
    ),
    "envs": ("Environments", "mirl.envs", "mirl.envs.worlds.context_wrappers"),
    "policies": (
        "Policies",
        "mirl.policies",
        "mirl.policies.off_policy",
        "mirl.policies.programs",
        "mirl.policies.specialize",
    ),
    "fusions": ("Fusions", "mirl.policies.fusions", "mirl.policies.grouped_matmul"),
    "parts": (
        "Encoders, contexts and recurrent cores",
        "mirl.policies.encoders",
        "mirl.policies.contexts",
        "mirl.policies.features",
        "mirl.policies.memory.core",
        "mirl.policies.memory.build",
        "mirl.policies.memory.episodes",
    ),
    "configs": (
        "Configuration",
        "mirl.configs.schema",
        "mirl.configs.agents",
        "mirl.configs.networks",
        "mirl.configs.tasks",
        "mirl.configs.comparison",
        "mirl.configs.config",
        "mirl.configs.keys",
        "mirl.configs.errors",
    ),
}
"""Pages of the reference: their titles and the modules whose public names they document."""


def on_config(config: MkDocsConfig) -> None:
    """Make a folder in which the package has its name, whatever the repository's folder is called.

    Args:
        config: the configuration of the site.
    """
    package = Path(config.config_file_path).parent / ".mkdocs" / "mirl"
    package.mkdir(parents=True, exist_ok=True)
    for name in PACKAGE:
        link = package / name
        if not link.is_symlink():
            link.symlink_to(ROOT / name)


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that are no files in docs/.

    Args:
        files: the files of the site.
        config: the configuration of the site.
    """
    for name in FILES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    home = File.generated(config, "index.md", content=(ROOT / HOME).read_text(encoding="utf-8"))
    files.append(home)
    pages = {**option_pages(), "adr/index.md": _decisions()}
    for name, (title, *modules) in API.items():
        blocks = "\n\n".join(f"::: {module}" for module in modules)
        pages[f"api/{name}.md"] = f"# {title}\n\n{blocks}\n"
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))


def _decisions() -> str:
    """Return the page that lists the decisions."""
    lines = ["# Decisions", ""]
    for path in sorted((ROOT / "docs" / "adr").glob("*.md")):
        number, _, title = path.read_text(encoding="utf-8").partition("\n")[0][2:].partition(". ")
        lines.append(f"{number}. [{title}]({path.name})")
    return "\n".join(lines) + "\n"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of a page to the pages of the site.

    Args:
        markdown: the text of the page.
        page: the page.
        config: the configuration of the site.
        files: the files of the site.
    """
    here = page.file.src_uri

    def to_site(match: re.Match[str]) -> str:
        source = f"docs/{here}"
        if here == "index.md" or here in FILES:
            source = here
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        if target == HOME:
            target = "index.md"
        elif target.startswith("docs/"):
            target = target.removeprefix("docs/")
        if files.get_file_from_path(f"{target}/index.md") is not None:
            target += "/index.md"
        return posixpath.relpath(target, posixpath.dirname(here) or ".")

    return LINK.sub(to_site, markdown)
