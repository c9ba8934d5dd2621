"""Leaves the tests out of the wheel; pyproject.toml holds everything else.

The package is the top folder itself, so setuptools would take every module in it.
"""
from setuptools import setup
from setuptools.command.build_py import build_py

NOT_INSTALLED = 'setup', 'test_uniparser'


class BuildPackage(build_py):
    def find_package_modules(self, package, package_dir):
        found = super().find_package_modules(package, package_dir)
        return [module for module in found if module[1] not in NOT_INSTALLED]


setup(cmdclass={'build_py': BuildPackage})
