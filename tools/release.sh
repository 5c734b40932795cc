#!/usr/bin/env bash
# Usage: release.sh check | tag. check: clean tree on main, a release version that has a changelog
# entry and no tag yet. tag: the same, then tags it. Publishes nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -nE 's/^__version__ = "(.*)"$/\1/p' ofb_tf/version.py)
fail() { echo "release: $1" >&2; exit 1; }

[[ "$version" =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] ||
  fail "ofb_tf/version.py must name a release like 1.2.3. Received: $version"
[ -z "$(git status --porcelain)" ] || fail "the tree has changes that are not committed"
[ "$(git branch --show-current)" = main ] || fail "releases are made on main"
grep -qF "## $version" CHANGELOG.md ||
  fail "CHANGELOG.md has no entry '## $version'; rename 'Unreleased' to it, with the date"
[ -z "$(git tag --list "v$version")" ] || fail "the tag v$version exists already"
[ "$1" = tag ] || exit 0
git tag --annotate "v$version" --message "ofb-tf $version"
echo "tagged v$version. Publish it with: git push origin v$version && twine upload dist/*"
